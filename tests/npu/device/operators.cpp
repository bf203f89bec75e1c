// Operators that make tensors, change how they lie in memory, or move values between the device and the host.
// Everything else goes through the fallback.
#include "operators.h"

#include <ATen/EmptyTensor.h>
#include <ATen/native/ResizeCommon.h>
#include <ATen/ops/_local_scalar_dense_cpu_dispatch.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "counters.h"
#include "device.h"
#include "graphs.h"

namespace emulated_npu {
namespace {

constexpr c10::DispatchKeySet keys{c10::DispatchKey::PrivateUse1};

using Sizes = c10::SymIntArrayRef;
template <class T> using Maybe = std::optional<T>;

at::Tensor empty(Sizes sizes, Maybe<at::ScalarType> type, Maybe<at::Layout>, Maybe<c10::Device> device, Maybe<bool>,
                 Maybe<at::MemoryFormat> format) {
    const c10::DeviceGuard guard(device.value_or(c10::Device(device_type)));
    open_current_die();
    return at::detail::empty_generic_symint(sizes, &device_allocator(), keys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(Sizes sizes, Sizes strides, Maybe<at::ScalarType> type, Maybe<at::Layout>,
                         Maybe<c10::Device> device, Maybe<bool>) {
    const c10::DeviceGuard guard(device.value_or(c10::Device(device_type)));
    open_current_die();
    return at::detail::empty_strided_symint_generic(sizes, strides, &device_allocator(), keys,
                                                    c10::dtype_or_default(type));
}

at::Tensor as_strided(const at::Tensor &self, at::IntArrayRef sizes, at::IntArrayRef strides, Maybe<int64_t> offset) {
    return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}

const at::Tensor &resize_(const at::Tensor &self, at::IntArrayRef sizes, Maybe<at::MemoryFormat> format) {
    at::TensorImpl *tensor = self.unsafeGetTensorImpl();
    if (tensor->sizes() != sizes)
        tensor->set_sizes_contiguous(sizes);
    if (format && *format != at::MemoryFormat::Preserve)
        tensor->empty_tensor_restride(*format);
    const size_t needed = at::detail::computeStorageNbytes(tensor->sizes(), tensor->strides(), self.itemsize(),
                                                           static_cast<size_t>(tensor->storage_offset()));
    if (self.storage().nbytes() < needed)
        resize_storage(self.storage(), needed);
    return self;
}

at::Tensor &set_storage_(at::Tensor &self, at::Storage source, int64_t offset, at::IntArrayRef sizes,
                         at::IntArrayRef strides) {
    at::TensorImpl *tensor = self.unsafeGetTensorImpl();
    tensor->set_storage_keep_dtype(std::move(source));
    tensor->set_storage_offset(offset);
    if (strides.empty() && !sizes.empty())
        tensor->set_sizes_contiguous(sizes);
    else
        tensor->set_sizes_and_strides(sizes, strides);
    const size_t needed = at::detail::computeStorageNbytes(tensor->sizes(), tensor->strides(), self.itemsize(),
                                                           static_cast<size_t>(offset));
    if (self.storage().nbytes() < needed)
        resize_storage(self.storage(), needed);
    return self;
}

at::Tensor &set_empty_(at::Tensor &self) {
    return set_storage_(self, at::Storage(c10::Storage::use_byte_size_t(), 0, &device_allocator(), true), 0, {0}, {1});
}

at::Scalar local_scalar_dense(const at::Tensor &self) {
    refuse_in_capture("reading a value");
    current_stream().wait();
    count("value read", self.itemsize());
    return at::cpu::_local_scalar_dense(Placed(self).on_host());
}

void record_stream(at::Tensor &self, at::Stream stream) {
    if (self.storage().data() != nullptr)
        open_current_die().record_stream(self.storage().data(), stream_of(stream));
}

// Puts a copy on the stream. `host`: the tensor of the CPU among the two, if there is one, which the copy keeps.
void put_copy(const std::string &name, const at::Tensor &from, const at::Tensor &to) {
    const auto view = [](const at::Tensor &tensor) -> std::function<at::Tensor()> {
        if (!on_emulated_npu(tensor))
            return [tensor] { return tensor; };
        return [placed = Placed(tensor)] { return placed.on_host(); };
    };
    auto work = std::make_shared<FunctionWork>(
        name, [source = view(from), target = view(to)](uint64_t) { target().copy_(source()); },
        from.nbytes() + to.nbytes());
    for (const at::Tensor *tensor : {&from, &to})
        if (on_emulated_npu(*tensor))
            work->touches.push_back(tensor->const_data_ptr());
    current_stream().put(std::move(work));
}

at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool non_blocking) {
    if (to.numel() == 0)
        return to;
    if (on_emulated_npu(from) && on_emulated_npu(to)) {
        put_copy("copy on the device", from, to);
        return to;
    }
    const bool to_host = on_emulated_npu(from);
    const std::string name = to_host ? "copy to the host" : "copy from the host";
    const bool pinned = is_pinned((to_host ? to : from).const_data_ptr());
    if (pinned && non_blocking) {
        put_copy(name, from, to);
        return to;
    }
    refuse_in_capture(name + " that waits");
    if (!to_host && non_blocking) {
        put_copy(name, from.clone(), to); // its values are those of now
        return to;
    }
    put_copy(name, from, to);
    current_stream().wait();
    return to;
}

} // namespace

Placed::Placed(const at::Tensor &tensor)
    : address_(tensor.numel() == 0 ? nullptr : const_cast<void *>(tensor.const_data_ptr())),
      sizes_(tensor.sizes().vec()), strides_(tensor.strides().vec()), type_(tensor.scalar_type()),
      bytes_(tensor.nbytes()) {}

at::Tensor Placed::on_host() const {
    return at::from_blob(shadow(address_), sizes_, strides_, at::TensorOptions(type_));
}

at::Tensor Placed::on_device() const { return at_address(address_, sizes_, strides_, type_); }

at::Tensor empty_on_device(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
    open_current_die();
    return at::detail::empty_strided_generic(sizes, strides, &device_allocator(), keys, type);
}

at::Tensor without_memory(const at::Tensor &tensor) {
    return at::empty_strided(tensor.sizes(), tensor.strides(),
                             at::TensorOptions(tensor.scalar_type()).device(at::kMeta));
}

at::Tensor at_address(void *address, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
    const size_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(type));
    at::Storage storage(
        c10::Storage::use_byte_size_t(), bytes,
        c10::DataPtr(address,
                     c10::Device(device_type, c10::impl::getDeviceGuardImpl(device_type)->getDevice().index())),
        nullptr, false);
    at::Tensor tensor =
        at::detail::make_tensor<at::TensorImpl>(std::move(storage), keys, c10::scalarTypeToTypeMeta(type));
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
    return tensor;
}

} // namespace emulated_npu

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
    using namespace emulated_npu;
    library.impl("empty.memory_format", TORCH_FN(empty));
    library.impl("empty_strided", TORCH_FN(empty_strided));
    library.impl("as_strided", TORCH_FN(as_strided));
    library.impl("view", TORCH_FN(at::native::view));
    library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
    library.impl("resize_", TORCH_FN(resize_));
    library.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_));
    library.impl("set_.source_Storage",
                 TORCH_FN((static_cast<at::Tensor &(*)(at::Tensor &, at::Storage)>(at::native::set_))));
    library.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
    library.impl("set_", TORCH_FN(set_empty_));
    library.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
    library.impl("_copy_from", TORCH_FN(copy_from));
    library.impl("record_stream", TORCH_FN(record_stream));
}
