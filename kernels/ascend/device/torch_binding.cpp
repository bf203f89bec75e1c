// How torch's stream reaches a session: operators for tensors of torch_npu. No NPU has run them.
//
// torch_npu queues what it launches on a thread of its own; a launch that is to come in its order goes through that
// queue (OpCommand::RunOpApiV2), and one that is waited for is made after the queue has been emptied
// (NPUStream::stream()). As csrc/utils/torch_helper.h of sgl-kernel-npu has it for the first.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

#include "exchange_device.h"

namespace ascend_torch {
namespace {

ExchangeSession *session_at(int64_t address) { return reinterpret_cast<ExchangeSession *>(address); }

// Hands the current stream to a session. Returns whether it is being captured; if it is not, everything that torch has
// queued for it is on it.
bool use_stream(const at::Tensor &like, int64_t session) {
    const c10_npu::NPUStream stream = c10_npu::getCurrentNPUStream(like.device().index());
    const bool capturing = exchange_device_capturing(stream.stream(false)) != 0;
    exchange_device_use_stream(session_at(session), stream.stream(!capturing), 0);
    return capturing;
}

// Puts a dispatch (0), of at most `most_rows` to a rank, or a combine (1) on the current stream, in the order of
// torch's launches.
void launch(at::TensorList tensors, int64_t kernel, int64_t session, int64_t call, int64_t most_rows) {
    const auto stream = c10_npu::getCurrentNPUStream(tensors.front().device().index()).stream(false);
    exchange_device_use_stream(session_at(session), stream, 0); // it may have fewer cores than the one before
    ExchangeLaunch ready;
    const int result = kernel == 0 ? exchange_device_ready_dispatch(session_at(session),
                                                                    reinterpret_cast<const ExchangeDispatch *>(call),
                                                                    static_cast<uint64_t>(most_rows), &ready)
                                   : exchange_device_ready_combine(
                                         session_at(session), reinterpret_cast<const ExchangeCombine *>(call), &ready);
    TORCH_CHECK(result == EXCHANGE_OK, "a launch of the exchange could not be readied: ",
                reinterpret_cast<const char *>(session_at(session)->refusal));
    at_npu::native::OpCommand::RunOpApiV2(kernel == 0 ? "moe_dispatch" : "moe_combine",
                                          [ready, stream]() -> int { return exchange_device_launch(&ready, stream); });
}

// Copies what launches have found to a place on the host, in the order of the current stream; nobody waits.
void fetch_verdicts(const at::Tensor &like, int64_t session, int64_t place) {
    const auto stream = c10_npu::getCurrentNPUStream(like.device().index()).stream(false);
    at_npu::native::OpCommand::RunOpApiV2("moe_verdicts", [session, stream, place]() -> int {
        return exchange_device_fetch(session_at(session), stream, static_cast<uint32_t>(place));
    });
}

} // namespace
} // namespace ascend_torch

TORCH_LIBRARY(sglang_ascend_moe, library) {
    library.def("use_stream(Tensor like, int session) -> bool");
    library.def("launch(Tensor[] tensors, int kernel, int session, int call, int most_rows) -> ()");
    library.def("fetch_verdicts(Tensor like, int session, int place) -> ()");
}

TORCH_LIBRARY_IMPL(sglang_ascend_moe, PrivateUse1, library) {
    library.impl("use_stream", TORCH_FN(ascend_torch::use_stream));
    library.impl("launch", TORCH_FN(ascend_torch::launch));
    library.impl("fetch_verdicts", TORCH_FN(ascend_torch::fetch_verdicts));
}
