// The kernels as the host puts them on a stream. launch.asc defines these with CANN's compiler; tests define them with
// the host model.
#pragma once

#include "exchange_device.h"

namespace ascend_device {

enum Kernel : uint32_t { dispatch_kernel, combine_kernel, announce_kernel, tell_kernel, stamp_kernel };

// Its arguments are DispatchArguments, CombineArguments, AnnounceArguments, TellArguments or StampArguments.
void put(const ExchangeLaunch &launch, void *stream);

} // namespace ascend_device
