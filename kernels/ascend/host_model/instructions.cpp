#include "instructions.h"

#include <time.h>

namespace AscendC {
namespace {

constexpr int64_t cycle_ns = 20;
// Cores of a rank run on one thread and never change places between SetDeqScale and the casts that use it.
thread_local float deq_scale = 0;

} // namespace

int64_t GetSystemCycle() {
    ascend_model::Device::current()->let_others_run();
    if (const int64_t time = ascend_model::Device::current()->modelled_time(); time >= 0)
        return time / cycle_ns;
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec * 1'000'000'000 + now.tv_nsec) / cycle_ns;
}

float dequantisation_scale() { return deq_scale; }

void SetDeqScale(half scale) { deq_scale = static_cast<float>(scale); }

} // namespace AscendC
