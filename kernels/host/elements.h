// Element types of rows, with exact conversions to and from fp32 (to nearest, ties to even).
#pragma once

#include <bit>
#include <cstdint>

namespace ascend_moe {

#if defined(__aarch64__)
using Half = __fp16; // g++ 12 has no _Float16 here
#else
using Half = _Float16;
#endif

struct Bf16 {
    uint16_t bits;

    [[gnu::always_inline]] float to_float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
    [[gnu::always_inline]] static Bf16 from_float(float value) {
        const auto raw = std::bit_cast<uint32_t>(value);
        const bool is_nan = (raw & 0x7fffffff) > 0x7f800000;
        const uint32_t rounded = (raw + 0x7fff + (raw >> 16 & 1)) >> 16;
        return {static_cast<uint16_t>(is_nan ? 0x7fc0 : rounded)};
    }
};

struct Fp16 {
    Half value;

    [[gnu::always_inline]] float to_float() const { return static_cast<float>(value); }
    [[gnu::always_inline]] static Fp16 from_float(float value) { return {static_cast<Half>(value)}; }
};

struct Fp32 {
    float value;

    [[gnu::always_inline]] float to_float() const { return value; }
    [[gnu::always_inline]] static Fp32 from_float(float value) { return {value}; }
};

} // namespace ascend_moe
