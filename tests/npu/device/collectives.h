// Collectives of the emulated NPU, in the place of HCCL's.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace emulated_npu {

// The collectives of `host`, a backend for CPU tensors, on tensors of the device: over the same memory, in the order of
// streams, and in a graph at each replay again.
c10::intrusive_ptr<c10d::Backend> collectives_over(c10::intrusive_ptr<c10d::Backend> host);

} // namespace emulated_npu
