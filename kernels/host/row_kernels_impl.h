// The row kernels, included once per instruction set after the including file has chosen the compiler's target. Plain
// loops that compilers vectorise; products and sums are never fused (-ffp-contract=off), so all results are equal.
//
// Before including: #define ROW_KERNELS the name of the table, and ROW_KERNELS_NAME its name for people.

#include <algorithm>
#include <bit>
#include <cstring>

#include "elements.h"
#include "row_kernels.h"

namespace ascend_moe {
namespace {

template <uint32_t Bytes> struct Block {
    uint8_t bytes[Bytes];
};

// Loads each block once and stores it to every place.
template <uint32_t Bytes>
void scatter_blocks(uint8_t *const *places, uint32_t count, const uint8_t *row, uint64_t begin, uint64_t end) {
    for (uint64_t offset = begin; offset + Bytes <= end; offset += Bytes) {
        Block<Bytes> block;
        memcpy(&block, row + offset, Bytes);
        for (uint32_t place = 0; place < count; ++place)
            memcpy(places[place] + offset, &block, Bytes);
    }
}

void scatter(uint8_t *const *places, uint32_t count, const uint8_t *row, uint64_t bytes) {
    constexpr uint64_t wide = 256;
    const uint64_t whole = bytes / wide * wide;
    scatter_blocks<wide>(places, count, row, 0, whole);
    scatter_blocks<16>(places, count, row, whole, bytes);
}

#if defined(ROW_KERNELS_STREAM_BYTES)
void scatter_streaming(uint8_t *const *places, uint32_t count, const uint8_t *row, uint64_t bytes) {
    constexpr uint64_t width = ROW_KERNELS_STREAM_BYTES;
    bool aligned = bytes % width == 0;
    for (uint32_t place = 0; place < count; ++place)
        aligned = aligned && reinterpret_cast<uintptr_t>(places[place]) % width == 0;
    if (!aligned)
        return scatter(places, count, row, bytes);
    // A place at a time: processors combine non-temporal stores in few buffers.
    for (uint32_t place = 0; place < count; ++place)
        for (uint64_t offset = 0; offset < bytes; offset += width)
            ROW_KERNELS_STREAM(places[place] + offset, row + offset);
}

void drain() { _mm_sfence(); }
#else
void scatter_streaming(uint8_t *const *places, uint32_t count, const uint8_t *row, uint64_t bytes) {
    scatter(places, count, row, bytes);
}

void drain() {}
#endif

template <class Element> float quantise(const void *source, uint32_t hidden, int8_t *values) {
    const auto *row = static_cast<const Element *>(source);
    // Magnitudes of floats compare like their bits; infinities and NaNs are the greatest.
    uint32_t greatest = 0;
    for (uint32_t i = 0; i < hidden; ++i)
        greatest = std::max(greatest, std::bit_cast<uint32_t>(row[i].to_float()) & 0x7fffffff);
    const float max = std::bit_cast<float>(greatest);
    const bool is_zero = max < 0x1p-120f; // 127 / max would overflow
    if (is_zero || greatest >= 0x7f800000) {
        memset(values, 0, hidden);
        return is_zero ? 0.0f : std::bit_cast<float>(0x7fc00000u);
    }
    const float inverse = 127.0f / max;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, as long as |value| < 2^22.
    constexpr float rounder = 12582912.0f;
    for (uint32_t i = 0; i < hidden; ++i) {
        const float scaled = std::min(std::max(row[i].to_float() * inverse, -127.0f), 127.0f);
        values[i] = static_cast<int8_t>(static_cast<int32_t>((scaled + rounder) - rounder));
    }
    return max / 127.0f;
}

// `Width` elements of a token's sum, kept in registers over all terms.
template <class Element, uint32_t Width>
void reduce_strip(const Term *terms, uint32_t count, uint32_t begin, Element *out) {
    float sums[Width] = {};
    for (uint32_t k = 0; k < count; ++k) {
        const auto *row = reinterpret_cast<const Element *>(terms[k].row) + begin;
        const float weight = terms[k].weight;
        // @protocol read-out
        for (uint32_t i = 0; i < Width; ++i)
            sums[i] = sums[i] + weight * row[i].to_float();
    }
    for (uint32_t i = 0; i < Width; ++i)
        out[begin + i] = Element::from_float(sums[i]);
}

template <class Element> void reduce(const Term *terms, uint32_t count, uint32_t hidden, void *result) {
    constexpr uint32_t wide = 64;
    auto *out = static_cast<Element *>(result);
    uint32_t begin = 0;
    for (; begin + wide <= hidden; begin += wide)
        reduce_strip<Element, wide>(terms, count, begin, out);
    for (; begin < hidden; begin += 16)
        reduce_strip<Element, 16>(terms, count, begin, out);
}

} // namespace

const RowKernels ROW_KERNELS = {
    ROW_KERNELS_NAME,
    scatter,
    scatter_streaming,
    drain,
    {quantise<Bf16>, quantise<Fp16>, quantise<Fp32>},
    {reduce<Bf16>, reduce<Fp16>, reduce<Fp32>},
};

} // namespace ascend_moe
