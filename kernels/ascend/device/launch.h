// The kernels as the host puts them on a stream. launch.asc defines these with CANN's compiler; tests define them with
// the host model.
#pragma once

#include <cstdint>

namespace ascend_device {

enum Kernel : uint32_t { dispatch_kernel, combine_kernel, announce_kernel, tell_kernel };

// `arguments` is in device memory: DispatchArguments, CombineArguments, AnnounceArguments or TellArguments.
void launch(Kernel kernel, uint32_t cores, void *stream, uint64_t arguments);

} // namespace ascend_device
