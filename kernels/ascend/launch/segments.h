// Host code: the segments of a prefill launch, one per core, that move equally many bytes however uneven the routing
// is.
//
// Prefill is planned on the host, which has looked at the ids for the plan anyway. A decode launch may be captured, and
// takes equal parts instead.
#pragma once

#include <cstdint>
#include <vector>

#include "../arguments.h"

namespace ascend_kernels {

// Where each of `cores` segments of `things` begins and the last one ends, so that all weigh the same. `weight(i)` is
// the weight of thing i, which may be cut into `parts` equal parts; bounds count parts.
template <class Weight>
std::vector<uint64_t> CutEvenly(uint64_t things, uint64_t parts, uint32_t cores, Weight weight) {
    uint64_t total = 0;
    for (uint64_t thing = 0; thing < things; ++thing)
        total += weight(thing) * parts;
    std::vector<uint64_t> bounds(cores + 1, things * parts);
    bounds[0] = 0;
    uint64_t before = 0;
    uint32_t core = 1;
    for (uint64_t thing = 0; thing < things; ++thing) {
        const uint64_t each = weight(thing);
        for (; core < cores && total * core / cores < before + each * parts; ++core)
            bounds[core] = thing * parts + (total * core / cores - before) / each;
        before += each * parts;
    }
    return bounds;
}

// What cores divide in dispatch, in elements: whole rows if a scale of each is needed.
inline uint32_t RowUnit(const ExchangeLayout &layout) {
    const auto element_bytes = static_cast<uint32_t>(layout.row_bytes / layout.hidden);
    return layout.quantised ? layout.hidden : UnitOf(layout.hidden, element_bytes);
}

// Segments of such units for dispatch: equally many bytes stored. `routed(token)` tells how often a row is placed.
template <class Routed>
std::vector<uint64_t> CutRows(const ExchangeLayout &layout, uint32_t unit, uint32_t tokens, uint32_t cores,
                              Routed routed) {
    return CutEvenly(tokens, layout.hidden / unit, cores, routed);
}

// Segments of units of elements for combine: equally many rows read and written. Positions as dispatch left them.
inline std::vector<uint64_t> CutUnits(const ExchangeLayout &layout, const int64_t *positions, uint32_t tokens,
                                      uint32_t cores) {
    return CutEvenly(tokens, layout.hidden / SumUnit(layout), cores, [&layout, positions](uint64_t token) {
        uint64_t rows = 1;
        for (uint64_t k = 0; k < layout.topk; ++k)
            rows += positions[token * layout.topk + k] >= 0;
        return rows;
    });
}

} // namespace ascend_kernels
