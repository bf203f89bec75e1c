// Operators on tensors of the emulated NPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "streams.h"

namespace emulated_npu {

// A tensor of the device as its streams see it: where its elements lie and in which order. It keeps nothing alive, as
// work on a device does not.
class Placed {
  public:
    explicit Placed(const at::Tensor &tensor);
    // A tensor of the CPU over the same memory.
    at::Tensor on_host() const;
    // Of the device, without ownership.
    at::Tensor on_device() const;
    const void *address() const { return address_; }
    uint64_t bytes() const { return bytes_; }

  private:
    void *address_;
    std::vector<int64_t> sizes_;
    std::vector<int64_t> strides_;
    at::ScalarType type_;
    uint64_t bytes_;
};

inline bool on_emulated_npu(const at::Tensor &tensor) { return tensor.defined() && tensor.is_privateuseone(); }

at::Tensor empty_on_device(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type);
// The same sizes and strides without memory.
at::Tensor without_memory(const at::Tensor &tensor);
// A tensor over memory of the device that somebody else owns.
at::Tensor at_address(void *address, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type);

} // namespace emulated_npu
