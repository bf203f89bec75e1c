// How long anything here waits before it yields, and before it sleeps: the exchange, and what it is measured against.
#pragma once

#include <cstdint>

#include <time.h>

namespace ascend_moe {

// About a microsecond where a pause takes 140 cycles. Whoever is waited for may need this core, and where nobody does a
// yield takes no longer than a few pauses.
constexpr uint32_t spin_turns = 20;
constexpr uint64_t yield_ns = 2'000'000;
constexpr timespec nap = {0, 50'000};

inline uint64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

} // namespace ascend_moe
