// What our library for torch calls of torch_npu and of the current device, over the emulated NPU; compiled against the
// real headers.
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

#include "emulated_npu.h"
#include "runtime_stand_in.h"
#include "torch_queue.h"

namespace {

constexpr auto device_type = c10::DeviceType::PrivateUse1;
constexpr int64_t cores_of_die = 48;
int64_t cores = cores_of_die;

const c10::impl::DeviceGuardImplInterface &devices() { return *c10::impl::getDeviceGuardImpl(device_type); }

} // namespace

namespace c10_npu {

NPUStream getCurrentNPUStream(c10::DeviceIndex device) {
    return NPUStream(NPUStream::UNCHECKED, devices().getStream(c10::Device(device_type, device)));
}

aclrtStream NPUStream::stream(const bool need_empty) const {
    auto *handle = reinterpret_cast<aclrtStream>(stream_.id());
    if (need_empty)
        torch_queue::empty(handle);
    return handle;
}

} // namespace c10_npu

void at_npu::native::OpCommand::RunOpApiV2(const string &op_name, const PROC_FUNC &func, bool) {
    const int result = torch_queue::run_in_order(func);
    TORCH_CHECK(result == 0, "emulated NPU: ", op_name, " returned ", result, ": ", aclGetRecentErrMsg());
}

aclError aclrtGetDevice(int32_t *device) {
    *device = devices().getDevice().index();
    return ACL_SUCCESS;
}
aclError aclrtSetDevice(int32_t device) {
    devices().setDevice(c10::Device(device_type, static_cast<c10::DeviceIndex>(device)));
    return ACL_SUCCESS;
}
aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr attribute, int64_t *value) {
    if (attribute != ACL_DEV_ATTR_VECTOR_CORE_NUM)
        return ACL_ERROR_RT_PARAM_INVALID;
    *value = cores;
    return ACL_SUCCESS;
}

aclError aclrtGetDeviceResLimit(int32_t, aclrtDevResLimitType, uint32_t *value) {
    *value = static_cast<uint32_t>(cores);
    return ACL_SUCCESS;
}
aclError aclrtGetStreamResLimit(aclrtStream stream, aclrtDevResLimitType, uint32_t *value) {
    *value = cann_stand_in::cores_of(stream);
    return ACL_SUCCESS;
}
uint32_t cann_stand_in::cores_of(void *) { return static_cast<uint32_t>(cores); }
// Captures restrict no thread here.
aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode *) { return ACL_SUCCESS; }

extern "C" [[gnu::visibility("default")]] void emulated_cann_use_cores(int64_t count) { cores = count; }

namespace {

// A tensor over memory of the device that somebody else owns, of bytes.
at::Tensor at_address(int64_t address, int64_t bytes, c10::Device device) {
    return at::from_blob(reinterpret_cast<void *>(address), {bytes}, at::TensorOptions(at::kByte).device(device));
}

} // namespace

TORCH_LIBRARY(emulated_cann, library) {
    library.def("at_address(int address, int bytes, Device device) -> Tensor");
    library.impl("at_address", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(at_address));
}
