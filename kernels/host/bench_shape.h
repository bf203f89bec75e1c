// Sizes that follow from a BenchShape.
#pragma once

#include <cstdint>

#include "bench_rows.h"
#include "exchange.h"

namespace ascend_moe {

inline uint64_t result_bytes(const BenchShape &shape) {
    return uint64_t{shape.hidden} * (shape.element == EXCHANGE_FP32 ? 4 : 2);
}

// Of a row on its way to an expert.
inline uint64_t packed_bytes(const BenchShape &shape) {
    return shape.quantised ? shape.hidden + BENCH_SCALE_BYTES : result_bytes(shape);
}

inline uint8_t *align_line(uint8_t *address) {
    const auto number = reinterpret_cast<uintptr_t>(address);
    return address + (BENCH_LINE_BYTES - number % BENCH_LINE_BYTES) % BENCH_LINE_BYTES;
}

} // namespace ascend_moe
