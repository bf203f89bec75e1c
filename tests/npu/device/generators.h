// Generators of the emulated NPU. As on a device, a call reserves its random numbers when it is made, whenever it runs:
// each call has a seed of its own, derived from the generator's seed and from how many calls were made before.
#pragma once

#include <ATen/core/Generator.h>

namespace emulated_npu {

const at::Generator &default_generator();
at::Generator new_generator(c10::DeviceIndex device);
// Makes generators of the CPU for one call, in a graph another one for each replay.
class Draws {
  public:
    // Reserves the numbers of one call. `generator`: one of this device.
    explicit Draws(const at::Generator &generator);
    at::Generator of_replay(uint64_t replay) const;

  private:
    uint64_t seed_;
    uint64_t offset_;
};

} // namespace emulated_npu
