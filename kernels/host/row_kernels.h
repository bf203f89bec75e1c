// What touches rows: scatter, quantise, reduce. One source, compiled for several instruction sets with equal results.
#pragma once

#include <cstdint>
#include <span>

#include "exchange.h"

namespace ascend_moe {

// One row that a token's sum is made of.
struct Term {
    const uint8_t *row;
    float weight;
};

using Places = std::span<uint8_t *const>;
using Terms = std::span<const Term>;

struct RowKernels {
    const char *name;
    // Fetches a line that will soon be written.
    void (*fetch_line)(const void *line);
    // Writes a row into all `places`; both rows and places are 16-byte aligned, `bytes` a multiple of 16. `upcoming`:
    // the places of the next row, fetched ahead.
    void (*scatter)(Places places, const uint8_t *row, uint64_t bytes, Places upcoming);
    // The same past the caches, for payloads that do not fit them. Ordered before later words only after drain().
    void (*scatter_streaming)(Places places, const uint8_t *row, uint64_t bytes, Places upcoming);
    void (*drain)();
    // By ExchangeElement. The bits of the greatest magnitude of a row of `hidden` elements.
    uint32_t (*greatest[3])(const void *row, uint32_t hidden);
    // By ExchangeElement. int8 values of a row of `hidden` elements and its scale: value = int8 * scale, where scale =
    // max / 127 and int8 = x * (127 / max) rounded to even. A row below 2^-120 counts as zero and has scale 0; a row
    // that is not finite has scale NaN; both have zeros only.
    float (*quantise[3])(const void *row, uint32_t hidden, int8_t *values);
    // By ExchangeElement. quantise and scatter at once. `greatest` is that of the row, and becomes that of `next`, the
    // row after it, if that is not null.
    float (*scatter_quantised[3])(Places places, const void *row, uint32_t hidden, uint32_t &greatest, int8_t *values,
                                  Places upcoming, const void *next);
    // By ExchangeElement. sum = sum + weight * value in the order of `terms` from zero, in fp32, rounded once.
    // `upcoming`: the terms of the next sum, fetched ahead.
    void (*reduce[3])(Terms terms, uint32_t hidden, void *out, Terms upcoming);
};

extern const RowKernels portable_kernels;
#if defined(__x86_64__)
extern const RowKernels avx2_kernels;
extern const RowKernels avx512_kernels;
#endif

// The kernels in use: the widest that this processor has, unless exchange_select_kernels chose others.
const RowKernels &row_kernels();

} // namespace ascend_moe
