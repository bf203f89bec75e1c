// What an exchange has done, as a Python type: whole numbers, counted by the calls themselves.
#pragma once

#include "objects.h"

#include <array>
#include <cstdint>

#include "exchange.h"

namespace binding {

// Of one phase; what each number is: observation.py, in this order.
struct PhaseCounts {
    uint64_t calls, rounds, tokens, rows, largest_rows, dispatch_ns, combine_ns;
};

// A dispatch that has ended.
struct Dispatched {
    uint32_t kind;
    uint64_t begun_ns; // of CLOCK_MONOTONIC, as all times are
    uint64_t tokens, rows, largest_rows;
    bool first_round;
};

struct Counters {
    std::array<PhaseCounts, 2> phases; // decode, prefill
    bool measures_imbalance;

    PhaseCounts &of(uint32_t kind) { return phases[kind == EXCHANGE_PREFILL ? 1 : 0]; }
    void dispatched(const Dispatched &ended);
    void combined(uint32_t kind, uint64_t begun_ns);
};

// Nanoseconds of CLOCK_MONOTONIC, which Python has as time.perf_counter_ns.
uint64_t now_ns();

extern PyTypeObject *counters_type;

bool add_counters_type(PyObject *module);

} // namespace binding
