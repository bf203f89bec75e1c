// What an exchange has done, as a Python type: sums and histograms, counted by the calls themselves.
#pragma once

#include "objects.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "exchange.h"
#include "waiting.h"

namespace binding {

constexpr size_t most_bounds = 17;

// How many values lie at or below each bound and above the one before; at last those above all bounds.
struct Histogram {
    std::array<uint64_t, most_bounds + 1> counts;
    double sum;

    void add(double value, const double *bounds, size_t number);
};

// What histograms are of. Times are in seconds.
enum Measure { dispatch_time, combine_time, wait_time, rows_of_rank, imbalance, rounds_of_call, measures };

// Of one phase; what each number is: observation.py, in this order.
struct PhaseCounts {
    uint64_t calls, rounds, tokens, rows, largest_rows, dispatch_ns, combine_ns;
    std::array<Histogram, measures> histograms;
};

// A dispatch that has ended.
struct Dispatched {
    uint32_t kind;
    uint64_t begun_ns; // of CLOCK_MONOTONIC, as all times are
    uint64_t tokens, rows;
    uint64_t largest_rows, rows_of_all; // 0: not looked for
    bool first_round;
    bool waited; // else the time is that of a launch
};

struct Counters {
    std::array<PhaseCounts, 2> phases; // decode, prefill
    uint64_t waited_ns;                // for all peers, when a combine ended last
    uint32_t ranks;
    bool measures_imbalance;

    PhaseCounts &of(uint32_t kind) { return phases[kind == EXCHANGE_PREFILL ? 1 : 0]; }
    void dispatched(const Dispatched &ended);
    // `waited`: whether the call was waited for; `waits`: for each peer, since the exchange was opened; null:
    // not known.
    void combined(uint32_t kind, uint64_t begun_ns, bool waited, const std::vector<uint64_t> *waits);
    void planned(uint64_t begun_ns, uint64_t rounds);
};

// Of CLOCK_MONOTONIC, which Python has as time.perf_counter_ns.
using ascend_moe::now_ns;

extern PyTypeObject *counters_type;

bool add_counters_type(PyObject *module);

} // namespace binding
