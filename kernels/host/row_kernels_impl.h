// The row kernels, included once per instruction set after the including file has chosen the compiler's target. Written
// with vector types, which any compiler turns into the instructions of that target. Products and sums are never fused
// (-ffp-contract=off) and every lane does the same in the same order, so all results are equal.
//
// Before including: #define ROW_KERNELS the name of the table, ROW_KERNELS_NAME its name for people, and
// ROW_KERNELS_VECTOR_BYTES the width of a register; ROW_KERNELS_STREAM(place, source) where there are streaming stores;
// ROW_KERNELS_LOAD_HALVES(from) and ROW_KERNELS_STORE_HALVES(to, floats) where a register of fp16 converts at once,
// which g++ 12 does not see by itself.

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "row_kernels.h"

namespace ascend_moe {
namespace {

constexpr uint32_t vector_bytes = ROW_KERNELS_VECTOR_BYTES;
constexpr uint32_t lanes = vector_bytes / 4;

using Bytes [[gnu::vector_size(vector_bytes)]] = uint8_t;
using Tail [[gnu::vector_size(16)]] = uint8_t;
using Floats [[gnu::vector_size(vector_bytes)]] = float;
using Words [[gnu::vector_size(vector_bytes)]] = uint32_t;
using Integers [[gnu::vector_size(vector_bytes)]] = int32_t;
using Shorts [[gnu::vector_size(vector_bytes)]] = int16_t;
using HalfWords [[gnu::vector_size(vector_bytes / 2)]] = uint16_t;
using Halves [[gnu::vector_size(vector_bytes / 2)]] = Half;
using Quarters [[gnu::vector_size(vector_bytes / 4)]] = int8_t;

template <class Vector> [[gnu::always_inline]] inline Vector load(const void *from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector> [[gnu::always_inline]] inline void store(void *to, const Vector &vector) {
    memcpy(to, &vector, sizeof vector);
}

[[gnu::always_inline]] inline Floats load_floats(const Bf16 *row) {
    return reinterpret_cast<Floats>(__builtin_convertvector(load<HalfWords>(row), Words) << 16);
}
[[gnu::always_inline]] inline Floats load_floats(const Fp16 *row) {
#if defined(ROW_KERNELS_LOAD_HALVES)
    return ROW_KERNELS_LOAD_HALVES(row);
#else
    return __builtin_convertvector(load<Halves>(row), Floats);
#endif
}
[[gnu::always_inline]] inline Floats load_floats(const Fp32 *row) { return load<Floats>(row); }

// As Bf16::from_float, with the result in the upper half of each lane: to nearest even, any NaN to 0x7fc0.
[[gnu::always_inline]] inline Words round_to_bf16(const Floats &values) {
    const Words raw = reinterpret_cast<Words>(values);
    const Integers is_nan = values != values;
    return is_nan ? Words{} + 0x7fc00000 : raw + 0x7fff + (raw >> 16 & 1);
}
[[gnu::always_inline]] inline void store_floats(Bf16 *row, const Floats &values) {
    store(row, __builtin_convertvector(round_to_bf16(values) >> 16, HalfWords));
}
[[gnu::always_inline]] inline void store_floats(Fp16 *row, const Floats &values) {
#if defined(ROW_KERNELS_STORE_HALVES)
    ROW_KERNELS_STORE_HALVES(row, values);
#else
    store(row, __builtin_convertvector(values, Halves));
#endif
}
[[gnu::always_inline]] inline void store_floats(Fp32 *row, const Floats &values) { store(row, values); }

// Two registers of neighbouring elements, in any order that store_pair undoes. Those of bf16 are the even ones and the
// odd ones: a shift and a mask, where elements in their order would have to be moved across lanes.
struct Pair {
    Floats first, second;
};

constexpr uint32_t upper_half = 0xffff0000;

template <class Element> [[gnu::always_inline]] inline Pair load_pair(const Element *row) {
    return {load_floats(row), load_floats(row + lanes)};
}
template <> [[gnu::always_inline]] inline Pair load_pair(const Bf16 *row) {
    const auto words = load<Words>(row);
    return {reinterpret_cast<Floats>(words << 16), reinterpret_cast<Floats>(words & upper_half)};
}

template <class Element> [[gnu::always_inline]] inline void store_pair(Element *row, const Pair &pair) {
    store_floats(row, pair.first);
    store_floats(row + lanes, pair.second);
}
template <> [[gnu::always_inline]] inline void store_pair(Bf16 *row, const Pair &pair) {
    store(row, (round_to_bf16(pair.first) >> 16) | (round_to_bf16(pair.second) & upper_half));
}

// What is written or read this many bytes later is fetched ahead. The rows of a token lie in as many places as it has
// experts, and a processor's own prefetchers begin anew on each page: fetching is what both movements wait for.
constexpr uint64_t ahead_bytes = 1024;
constexpr uint64_t cache_line_bytes = 64;

template <bool Writing> [[gnu::always_inline]] inline void fetch(const void *address) {
    __builtin_prefetch(address, Writing, 3);
}

// `Vectors` registers are loaded once and stored to every place.
template <uint32_t Vectors>
[[gnu::always_inline]] inline void scatter_strip(Places places, const uint8_t *row, uint64_t offset) {
    Bytes strip[Vectors];
    for (uint32_t i = 0; i < Vectors; ++i)
        strip[i] = load<Bytes>(row + offset + i * vector_bytes);
    for (uint8_t *place : places)
        for (uint32_t i = 0; i < Vectors; ++i)
            store(place + offset + i * vector_bytes, strip[i]);
}

void fetch_line(const void *line) { fetch<true>(line); }

constexpr uint32_t strip_vectors = vector_bytes == 64 ? 4 : 8;
constexpr uint64_t strip_bytes = strip_vectors * vector_bytes;

// Calls prepare(offset) before the strip there is read.
template <class Prepare>
[[gnu::always_inline]] inline void scatter_prepared(Places places, const uint8_t *row, uint64_t bytes, Places upcoming,
                                                    Prepare prepare) {
    uint64_t offset = 0;
    for (; offset + strip_bytes <= bytes; offset += strip_bytes) {
        const bool in_row = offset + ahead_bytes < bytes;
        const uint64_t ahead = in_row ? offset + ahead_bytes : offset + ahead_bytes - bytes;
        for (const uint8_t *place : in_row ? places : upcoming)
            for (uint64_t line = 0; line < strip_bytes; line += cache_line_bytes)
                fetch<true>(place + ahead + line);
        prepare(offset);
        scatter_strip<strip_vectors>(places, row, offset);
    }
    prepare(offset);
    for (; offset + vector_bytes <= bytes; offset += vector_bytes)
        scatter_strip<1>(places, row, offset);
    for (; offset < bytes; offset += sizeof(Tail)) {
        const auto tail = load<Tail>(row + offset);
        for (uint8_t *place : places)
            store(place + offset, tail);
    }
}

void scatter(Places places, const uint8_t *row, uint64_t bytes, Places upcoming) {
    scatter_prepared(places, row, bytes, upcoming, [](uint64_t) {});
}

#if defined(ROW_KERNELS_STREAM)
void scatter_streaming(Places places, const uint8_t *row, uint64_t bytes, Places upcoming) {
    bool aligned = bytes % vector_bytes == 0;
    for (const uint8_t *place : places)
        aligned = aligned && reinterpret_cast<uintptr_t>(place) % vector_bytes == 0;
    if (!aligned)
        return scatter(places, row, bytes, upcoming);
    // A place at a time: processors combine streaming stores in few buffers.
    for (uint8_t *place : places)
        for (uint64_t offset = 0; offset < bytes; offset += vector_bytes)
            ROW_KERNELS_STREAM(place + offset, row + offset);
}

void drain() { _mm_sfence(); }
#else
void scatter_streaming(Places places, const uint8_t *row, uint64_t bytes, Places upcoming) {
    scatter(places, row, bytes, upcoming);
}

void drain() {}
#endif

// The greatest magnitude among elements, as its bits. Magnitudes compare like their bits; infinities and NaNs are the
// greatest.
template <class Element> class Greatest {
  public:
    [[gnu::always_inline]] void take(const Element *row, uint32_t begin, uint32_t end) {
        uint32_t i = begin;
        for (; i + 2 * lanes <= end; i += 2 * lanes) {
            const Pair pair = load_pair(row + i);
            take(pair.first);
            take(pair.second);
        }
        for (; i < end; i += lanes)
            take(load_floats(row + i));
    }
    uint32_t bits() const {
        int32_t result = 0;
        for (uint32_t lane = 0; lane < lanes; ++lane)
            result = greatest_[lane] > result ? greatest_[lane] : result;
        return static_cast<uint32_t>(result);
    }

  private:
    [[gnu::always_inline]] void take(const Floats &values) {
        const Integers magnitude = reinterpret_cast<Integers>(values) & 0x7fffffff;
        greatest_ = magnitude > greatest_ ? magnitude : greatest_;
    }

    Integers greatest_ = {};
};

// Those of bf16 are the upper halves of those of fp32.
template <> class Greatest<Bf16> {
  public:
    [[gnu::always_inline]] void take(const Bf16 *row, uint32_t begin, uint32_t end) {
        uint32_t i = begin;
        for (; i + 2 * lanes <= end; i += 2 * lanes) {
            const Shorts magnitude = load<Shorts>(row + i) & 0x7fff;
            greatest_ = magnitude > greatest_ ? magnitude : greatest_;
        }
        for (; i < end; ++i)
            rest_ = (row[i].bits & 0x7fff) > rest_ ? row[i].bits & 0x7fff : rest_;
    }
    uint32_t bits() const {
        int32_t result = rest_;
        for (uint32_t lane = 0; lane < 2 * lanes; ++lane)
            result = greatest_[lane] > result ? greatest_[lane] : result;
        return static_cast<uint32_t>(result) << 16;
    }

  private:
    Shorts greatest_ = {};
    int32_t rest_ = 0;
};

template <class Element> uint32_t greatest_magnitude(const void *row, uint32_t hidden) {
    Greatest<Element> greatest;
    greatest.take(static_cast<const Element *>(row), 0, hidden);
    return greatest.bits();
}

// Makes int8 values of elements, given the bits of the greatest magnitude of their row.
class Quantiser {
  public:
    explicit Quantiser(uint32_t greatest) {
        const auto max = std::bit_cast<float>(greatest);
        if (max < 0x1p-120f) // 127 / max would overflow
            return;
        scale_ = std::bit_cast<float>(0x7fc00000u);
        if (greatest >= 0x7f800000)
            return;
        scale_ = max / 127.0f;
        inverse_ = 127.0f / max;
        mask_ = 0xff;
    }

    float scale() const { return scale_; }

    template <class Element>
    [[gnu::always_inline]] void write(const Element *row, uint32_t begin, uint32_t end, int8_t *values) const {
        uint32_t i = begin;
        if constexpr (std::is_same_v<Element, Bf16>)
            for (; i + 2 * lanes <= end; i += 2 * lanes) {
                const Pair pair = load_pair(row + i);
                const Words joint = rounded(pair.first) | rounded(pair.second) << 8;
                store(values + i, __builtin_convertvector(joint, HalfWords));
            }
        for (; i < end; i += lanes)
            store(values + i, __builtin_convertvector(rounded(load_floats(row + i)), Quarters));
    }

  private:
    // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the lower bits of the sum, as long as |value| <
    // 2^22. Here it is 127 at most: the two roundings of max * (127 / max) make less than half of a unit.
    [[gnu::always_inline]] Words rounded(const Floats &elements) const {
        return reinterpret_cast<Words>(elements * inverse_ + 12582912.0f) & mask_;
    }

    float inverse_ = 0, scale_ = 0;
    uint32_t mask_ = 0; // 0: all values are zero, whatever the elements are
};

template <class Element> float quantise(const void *source, uint32_t hidden, int8_t *values) {
    const Quantiser quantiser(greatest_magnitude<Element>(source, hidden));
    quantiser.write(static_cast<const Element *>(source), 0, hidden, values);
    return quantiser.scale();
}

// Every strip is quantised while the one before it is written, which waits for memory. So is the next row searched.
template <class Element>
float scatter_quantised(Places places, const void *source, uint32_t hidden, uint32_t &greatest, int8_t *values,
                        Places upcoming, const void *next) {
    const auto *row = static_cast<const Element *>(source);
    const auto *next_row = static_cast<const Element *>(next);
    const Quantiser quantiser(greatest);
    Greatest<Element> next_greatest;
    const auto strip_end = [&](uint64_t begin) {
        return static_cast<uint32_t>(std::min<uint64_t>(begin + strip_bytes, hidden));
    };
    quantiser.write(row, 0, strip_end(0), values);
    scatter_prepared(places, reinterpret_cast<const uint8_t *>(values), hidden, upcoming, [&](uint64_t offset) {
        const uint64_t begin = offset + strip_bytes;
        if (begin < hidden)
            quantiser.write(row, static_cast<uint32_t>(begin), strip_end(begin), values);
        if (next_row != nullptr && offset < hidden)
            next_greatest.take(next_row, static_cast<uint32_t>(offset), strip_end(offset));
    });
    greatest = next_greatest.bits();
    return quantiser.scale();
}

// `Pairs` pairs of registers of a token's sum, kept over all terms.
template <class Element, uint32_t Pairs>
[[gnu::always_inline]] inline void reduce_strip(Terms terms, uint32_t begin, Element *out) {
    Pair sums[Pairs] = {};
    for (const Term &term : terms) {
        const auto *row = reinterpret_cast<const Element *>(term.row) + begin;
        // @protocol read-out
        for (uint32_t i = 0; i < Pairs; ++i) {
            const Pair values = load_pair(row + 2 * i * lanes);
            sums[i].first = sums[i].first + term.weight * values.first;
            sums[i].second = sums[i].second + term.weight * values.second;
        }
    }
    for (uint32_t i = 0; i < Pairs; ++i)
        store_pair(out + begin + 2 * i * lanes, sums[i]);
}

// One register of a token's sum.
template <class Element> [[gnu::always_inline]] inline void reduce_register(Terms terms, uint32_t begin, Element *out) {
    Floats sum = {};
    for (const Term &term : terms)
        sum = sum + term.weight * load_floats(reinterpret_cast<const Element *>(term.row) + begin);
    store_floats(out + begin, sum);
}

template <class Element> void reduce(Terms terms, uint32_t hidden, void *result, Terms upcoming) {
    constexpr uint32_t pairs = 2;
    constexpr uint32_t elements = 2 * pairs * lanes;
    constexpr uint64_t strip = elements * sizeof(Element);
    const uint64_t bytes = hidden * sizeof(Element);
    auto *out = static_cast<Element *>(result);
    uint32_t begin = 0;
    for (; begin + elements <= hidden; begin += elements) {
        const uint64_t offset = begin * sizeof(Element);
        const bool in_row = offset + ahead_bytes < bytes;
        const uint64_t ahead = in_row ? offset + ahead_bytes : offset + ahead_bytes - bytes;
        for (const Term &term : in_row ? terms : upcoming)
            for (uint64_t line = 0; line < strip; line += cache_line_bytes)
                fetch<false>(term.row + ahead + line);
        reduce_strip<Element, pairs>(terms, begin, out);
    }
    for (; begin < hidden; begin += lanes)
        reduce_register(terms, begin, out);
}

} // namespace

const RowKernels ROW_KERNELS = {
    ROW_KERNELS_NAME,
    fetch_line,
    scatter,
    scatter_streaming,
    drain,
    {greatest_magnitude<Bf16>, greatest_magnitude<Fp16>, greatest_magnitude<Fp32>},
    {quantise<Bf16>, quantise<Fp16>, quantise<Fp32>},
    {scatter_quantised<Bf16>, scatter_quantised<Fp16>, scatter_quantised<Fp32>},
    {reduce<Bf16>, reduce<Fp16>, reduce<Fp32>},
};

} // namespace ascend_moe
