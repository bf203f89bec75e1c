// Copies and vector instructions of the Ascend C subset.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "tensors.h"

namespace AscendC {

struct DataCopyExtParams {
    uint16_t blockCount;
    uint32_t blockLen;  // bytes
    uint32_t srcStride; // gap: bytes in global memory, blocks of 32 bytes in the unified buffer
    uint32_t dstStride;
    uint32_t rsv;
};

template <class T> struct DataCopyPadExtParams {
    bool isPad;
    uint8_t leftPadding;
    uint8_t rightPadding;
    T paddingValue;
};

template <class T> void require_aligned(const LocalTensor<T> &tensor, const char *what) {
    if (tensor.offset() % ascend_model::block_bytes != 0)
        ascend_model::violate("%s: the address %u in the unified buffer is not a multiple of 32", what,
                              tensor.offset());
}

template <class T> void require_room(const LocalTensor<T> &tensor, uint64_t bytes, const char *what) {
    if (bytes > tensor.bytes())
        ascend_model::violate("%s: %llu bytes in a buffer of %u", what, static_cast<unsigned long long>(bytes),
                              tensor.bytes());
}

inline void check_blocks(const DataCopyExtParams &blocks) {
    if (blocks.blockCount < 1 || blocks.blockCount > 4095 || blocks.blockLen < 1 || blocks.blockLen > 2097151)
        ascend_model::violate("DataCopyPad of %u blocks of %u bytes", blocks.blockCount, blocks.blockLen);
}

template <class T>
void DataCopyPad(const LocalTensor<T> &to, const GlobalTensor<T> &from, const DataCopyExtParams &blocks,
                 const DataCopyPadExtParams<T> &) {
    check_blocks(blocks);
    require_aligned(to, "DataCopyPad");
    ascend_model::Core &core = ascend_model::this_core();
    ascend_model::Device &device = *ascend_model::Device::current();
    device.begin_copy();
    core.issue(ascend_model::pipe_mte2);
    device.charge_copy(core, ascend_model::pipe_mte2, from.address(), blocks.blockCount, blocks.blockLen,
                       blocks.srcStride);
    const uint32_t pitch = padded(blocks.blockLen) + blocks.dstStride * 32;
    require_room(to, uint64_t{pitch} * (blocks.blockCount - 1u) + padded(blocks.blockLen), "DataCopyPad");
    for (uint32_t block = 0; block < blocks.blockCount; ++block) {
        const uint32_t at = to.offset() + block * pitch;
        core.write(ascend_model::pipe_mte2, at, padded(blocks.blockLen), "DataCopyPad");
        core.mark_undefined(at + blocks.blockLen, padded(blocks.blockLen) - blocks.blockLen);
        const uint64_t source = from.address() + uint64_t{block} * (blocks.blockLen + blocks.srcStride);
        const uint32_t bytes = blocks.blockLen;
        core.effect(ascend_model::pipe_mte2, [&core, &device, at, source, bytes, is_first = block == 0] {
            const bool polled = device.load(core, core.ub() + at, source, bytes);
            core.costs.loads += is_first && !polled;
        });
    }
}

template <class T>
void DataCopyPad(const GlobalTensor<T> &to, const LocalTensor<T> &from, const DataCopyExtParams &blocks) {
    check_blocks(blocks);
    require_aligned(from, "DataCopyPad");
    ascend_model::Core &core = ascend_model::this_core();
    ascend_model::Device &device = *ascend_model::Device::current();
    device.begin_copy();
    core.issue(ascend_model::pipe_mte3);
    ++core.costs.stores;
    const double visible = device.charge_copy(core, ascend_model::pipe_mte3, to.address(), blocks.blockCount,
                                              blocks.blockLen, blocks.dstStride);
    const uint32_t pitch = padded(blocks.blockLen) + blocks.srcStride * 32;
    require_room(from, uint64_t{pitch} * (blocks.blockCount - 1u) + blocks.blockLen, "DataCopyPad");
    for (uint32_t block = 0; block < blocks.blockCount; ++block) {
        const uint32_t at = from.offset() + block * pitch;
        core.read(ascend_model::pipe_mte3, at, blocks.blockLen, "DataCopyPad");
        const uint64_t target = to.address() + uint64_t{block} * (blocks.blockLen + blocks.dstStride);
        const uint32_t bytes = blocks.blockLen;
        core.effect(ascend_model::pipe_mte3, [&core, &device, at, target, bytes, visible] {
            device.store(core, target, core.ub() + at, bytes, visible);
        });
    }
}

// Moves whole blocks of 32 bytes: a size that is no multiple of them is rounded down.
template <class T> void DataCopy(const LocalTensor<T> &to, const GlobalTensor<T> &from, uint32_t count) {
    if (const auto blocks = static_cast<uint32_t>(count * sizeof(T) / 32); blocks > 0)
        DataCopyPad(to, from, {1, blocks * 32, 0, 0, 0}, DataCopyPadExtParams<T>{});
}

template <class T> void DataCopy(const GlobalTensor<T> &to, const LocalTensor<T> &from, uint32_t count) {
    if (const auto blocks = static_cast<uint32_t>(count * sizeof(T) / 32); blocks > 0)
        DataCopyPad(to, from, {1, blocks * 32, 0, 0, 0});
}

using ascend_model::VectorCost;

// One vector instruction: checks and notes its operands, hands out their memory, and takes effect.
class VectorInstruction {
  public:
    explicit VectorInstruction(const char *name, VectorCost cost = VectorCost::one_operand)
        : name_(name), core_(ascend_model::this_core()), cost_(cost) {
        core_.issue(ascend_model::pipe_v);
        ++core_.costs.vector_instructions;
    }
    ~VectorInstruction() { core_.charge_vector(widest_, cost_); }
    VectorInstruction(const VectorInstruction &) = delete;
    VectorInstruction &operator=(const VectorInstruction &) = delete;

    template <class T> const T *read(const LocalTensor<T> &tensor, int32_t count) {
        const uint32_t bytes = checked(tensor, count);
        core_.read(ascend_model::pipe_v, tensor.offset(), bytes, name_);
        sources_[number_++] = {tensor.offset(), bytes};
        return reinterpret_cast<const T *>(core_.ub() + tensor.offset());
    }
    template <class T> T *write(const LocalTensor<T> &tensor, int32_t count) {
        const uint32_t bytes = checked(tensor, count);
        for (uint32_t source = 0; source < number_; ++source) {
            const auto [begin, length] = sources_[source];
            const bool apart = tensor.offset() >= begin + length || begin >= tensor.offset() + bytes;
            if (!apart && (tensor.offset() != begin || bytes != length))
                ascend_model::violate("%s: the result overlaps a part of an operand", name_);
        }
        core_.write(ascend_model::pipe_v, tensor.offset(), bytes, name_);
        return reinterpret_cast<T *>(core_.ub() + tensor.offset());
    }
    template <class Effect> void run(Effect make) { core_.effect(ascend_model::pipe_v, std::move(make)); }

  private:
    template <class T> uint32_t checked(const LocalTensor<T> &tensor, int32_t count) {
        if (count <= 0)
            ascend_model::violate("%s of %d elements", name_, count);
        require_aligned(tensor, name_);
        require_room(tensor, static_cast<uint64_t>(count) * sizeof(T), name_);
        const auto bytes = static_cast<uint32_t>(static_cast<uint32_t>(count) * sizeof(T));
        widest_ = std::max(widest_, bytes);
        return bytes;
    }

    struct Range {
        uint32_t begin, length;
    };
    const char *name_;
    ascend_model::Core &core_;
    VectorCost cost_;
    Range sources_[2];
    uint32_t number_ = 0;
    uint32_t widest_ = 0;
};

// The types that A2 and A3 compute in.
template <class T> constexpr bool is_computed = std::is_same_v<T, float> || std::is_same_v<T, int32_t>;

template <class T> void Duplicate(const LocalTensor<T> &to, const T &value, const int32_t &count) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4, "Duplicate takes elements of 2 or 4 bytes");
    VectorInstruction instruction("Duplicate");
    instruction.run([result = instruction.write(to, count), count, value] { std::fill_n(result, count, value); });
}

template <class T, class Operation>
void binary(const char *name, const LocalTensor<T> &to, const LocalTensor<T> &left, const LocalTensor<T> &right,
            int32_t count, Operation operation) {
    static_assert(is_computed<T>);
    VectorInstruction instruction(name, VectorCost::two_operands);
    const T *one = instruction.read(left, count);
    const T *other = instruction.read(right, count);
    T *result = instruction.write(to, count);
    instruction.run([=] {
        for (int32_t i = 0; i < count; ++i)
            result[i] = operation(one[i], other[i]);
    });
}

template <class T>
void Add(const LocalTensor<T> &to, const LocalTensor<T> &left, const LocalTensor<T> &right, const int32_t &count) {
    binary("Add", to, left, right, count, [](T one, T other) {
        if constexpr (std::is_same_v<T, int32_t>)
            return static_cast<int32_t>(static_cast<uint32_t>(one) + static_cast<uint32_t>(other));
        else
            return one + other;
    });
}

template <class T>
void Max(const LocalTensor<T> &to, const LocalTensor<T> &left, const LocalTensor<T> &right, const int32_t &count) {
    static_assert(std::is_same_v<T, int32_t>, "what Max makes of a NaN is not stated");
    binary("Max", to, left, right, count, [](T one, T other) { return std::max(one, other); });
}

template <class T>
void Min(const LocalTensor<T> &to, const LocalTensor<T> &left, const LocalTensor<T> &right, const int32_t &count) {
    static_assert(std::is_same_v<T, int32_t>, "what Min makes of a NaN is not stated");
    binary("Min", to, left, right, count, [](T one, T other) { return std::min(one, other); });
}

template <class T, class Operation>
void unary(const char *name, const LocalTensor<T> &to, const LocalTensor<T> &from, int32_t count, Operation operation) {
    VectorInstruction instruction(name);
    const T *source = instruction.read(from, count);
    T *result = instruction.write(to, count);
    instruction.run([=] {
        for (int32_t i = 0; i < count; ++i)
            result[i] = operation(source[i]);
    });
}

inline void Muls(const LocalTensor<float> &to, const LocalTensor<float> &from, const float &scalar,
                 const int32_t &count) {
    unary("Muls", to, from, count, [scalar](float value) { return value * scalar; });
}

inline void Mins(const LocalTensor<float> &to, const LocalTensor<float> &from, const float &scalar,
                 const int32_t &count) {
    unary("Mins", to, from, count, [scalar](float value) { return std::min(value, scalar); });
}

inline void Maxs(const LocalTensor<float> &to, const LocalTensor<float> &from, const float &scalar,
                 const int32_t &count) {
    unary("Maxs", to, from, count, [scalar](float value) { return std::max(value, scalar); });
}

inline void Abs(const LocalTensor<float> &to, const LocalTensor<float> &from, const int32_t &count) {
    unary("Abs", to, from, count,
          [](float value) { return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffu); });
}

template <class T>
void Adds(const LocalTensor<T> &to, const LocalTensor<T> &from, const T &scalar, const int32_t &count) {
    static_assert(is_computed<T>);
    unary("Adds", to, from, count, [scalar](T value) { return value + scalar; });
}

// One float at any place; a sum of each 256 bytes lies in `work` in between. The order in which they are added is not
// stated.
inline void ReduceSum(const LocalTensor<float> &to, const LocalTensor<float> &from, const LocalTensor<float> &work,
                      const int32_t count) {
    constexpr int32_t repeat = 64;
    const int32_t sums = (count + repeat - 1) / repeat;
    {
        VectorInstruction instruction("ReduceSum", VectorCost::sum);
        const float *source = instruction.read(from, count);
        float *between = instruction.write(work, sums);
        instruction.run([=] {
            for (int32_t i = 0; i < sums; ++i)
                between[i] = std::accumulate(source + i * repeat, source + std::min(count, (i + 1) * repeat), 0.0f);
        });
    }
    ascend_model::Core &core = ascend_model::this_core();
    core.barrier(ascend_model::pipe_v);
    VectorInstruction instruction("ReduceSum", VectorCost::sum);
    const float *between = instruction.read(work, sums);
    require_room(to, sizeof(float), "ReduceSum");
    core.write(ascend_model::pipe_v, to.offset(), sizeof(float), "ReduceSum");
    float *result = reinterpret_cast<float *>(core.ub() + to.offset());
    instruction.run([=] { *result = std::accumulate(between, between + sums, 0.0f); });
}

struct GatherMaskParams {
    uint8_t src0BlockStride;
    uint16_t repeatTimes;
    uint16_t src0RepeatStride;
    uint8_t src1RepeatStride;
};

// Of each 2 or 4 floats the first, by the patterns 1 and 3; `counter`: of the first `mask` floats.
inline void GatherMask(const LocalTensor<float> &to, const LocalTensor<float> &from, uint8_t pattern, bool counter,
                       uint32_t mask, const GatherMaskParams &params, uint64_t &kept) {
    if ((pattern != 1 && pattern != 3) || !counter || params.src0BlockStride != 1 || params.repeatTimes != 1)
        ascend_model::violate("the model gathers the first of 2 or 4 floats, in counter mode, and once");
    const uint32_t every = pattern == 1 ? 2 : 4;
    kept = (mask + every - 1) / every;
    VectorInstruction instruction("GatherMask", VectorCost::gather);
    const float *source = instruction.read(from, static_cast<int32_t>(mask));
    float *result = instruction.write(to, static_cast<int32_t>(kept));
    instruction.run([=] {
        for (uint32_t i = 0; i < mask; i += every)
            result[i / every] = source[i];
    });
}

enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC };

float dequantisation_scale();
void SetDeqScale(half scale);

inline float to_float(bfloat16_t value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }
inline float to_float(half value) { return static_cast<float>(value); }

inline bfloat16_t to_bfloat16(float value) {
    const auto raw = std::bit_cast<uint32_t>(value);
    const bool is_nan = (raw & 0x7fffffff) > 0x7f800000;
    return {static_cast<uint16_t>(is_nan ? 0x7fc0 : (raw + 0x7fff + (raw >> 16 & 1)) >> 16)};
}

template <class To, class From> To converted(From value, RoundMode mode) {
    if constexpr (std::is_same_v<From, int64_t> && std::is_same_v<To, int32_t>) {
        constexpr int64_t least = std::numeric_limits<int32_t>::min(), most = std::numeric_limits<int32_t>::max();
        return static_cast<int32_t>(std::clamp(value, least, most));
    } else if constexpr (std::is_same_v<From, int32_t> && std::is_same_v<To, float>) {
        return static_cast<float>(value);
    } else if constexpr (std::is_same_v<To, float>) {
        return to_float(value);
    } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, bfloat16_t>) {
        return to_bfloat16(value);
    } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, half>) {
        return static_cast<half>(value);
    } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, int32_t>) {
        const double whole = mode == RoundMode::CAST_RINT ? std::nearbyint(double{value}) : std::trunc(double{value});
        if (std::isnan(whole))
            return 0;
        return static_cast<int32_t>(std::clamp(whole, -2147483648.0, 2147483647.0));
    } else if constexpr (std::is_same_v<From, int32_t> && std::is_same_v<To, half>) {
        return static_cast<half>(static_cast<float>(value) * dequantisation_scale());
    } else {
        static_assert(std::is_same_v<From, half> && std::is_same_v<To, int8_t>, "no such cast on A2 and A3");
        return static_cast<int8_t>(std::clamp(std::trunc(static_cast<float>(value)), -128.0f, 127.0f));
    }
}

template <class To, class From>
void Cast(const LocalTensor<To> &to, const LocalTensor<From> &from, const RoundMode &mode, const uint32_t count) {
    constexpr bool widens =
        (std::is_same_v<To, float> && !std::is_same_v<From, int32_t>) || std::is_same_v<From, int64_t>;
    constexpr bool narrows =
        std::is_same_v<From, float> || (std::is_same_v<From, int32_t> && std::is_same_v<To, float>);
    if (widens && mode != RoundMode::CAST_NONE)
        ascend_model::violate("a cast that loses nothing takes CAST_NONE");
    if (narrows && mode != RoundMode::CAST_RINT && mode != RoundMode::CAST_TRUNC)
        ascend_model::violate("the model rounds with CAST_RINT and CAST_TRUNC only");
    if (narrows && !std::is_same_v<To, int32_t> && mode != RoundMode::CAST_RINT)
        ascend_model::violate("the model rounds to 16-bit floats with CAST_RINT only");
    VectorInstruction instruction("Cast", VectorCost::two_operands);
    const From *source = instruction.read(from, static_cast<int32_t>(count));
    To *result = instruction.write(to, static_cast<int32_t>(count));
    instruction.run([=] {
        for (uint32_t i = 0; i < count; ++i)
            result[i] = converted<To>(source[i], mode);
    });
}

} // namespace AscendC
