// How long anything here waits before it yields, and before it sleeps: the exchange, and what it is measured against.
#pragma once

#include <cstdint>

#include <sched.h>
#include <time.h>

namespace ascend_moe {

// Without a look at the clock; about a microsecond where a pause takes 140 cycles.
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

// Whoever is waited for may need this core; for `spin_ns` it is known that no other rank does.
inline void rest(uint64_t waited_ns, uint64_t spin_ns) {
    if (waited_ns < spin_ns)
        relax();
    else if (waited_ns < yield_ns)
        sched_yield();
    else
        nanosleep(&nap, nullptr);
}

} // namespace ascend_moe
