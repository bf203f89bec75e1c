// Dynamic quantisation of a row while it passes through the unified buffer: value = int8 * scale, scale = max / 127.
#pragma once

#include "arguments.h"
#include "order.h"

namespace ascend_kernels {

constexpr uint32_t fold_least = EXCHANGE_UNIT_BYTES / sizeof(int32_t);

// A tile of a quantised row in the unified buffer, with the scale of the whole row.
struct PlacedTile {
    LocalTensor<int8_t> values;
    LocalTensor<float> scale;
    uint32_t begin, count; // elements
};

// As the host kernels do it: int8 = x * (127 / max) rounded to even; a row below 2^-120 counts as zero and has scale 0,
// a row that is not finite has scale NaN, and both have zeros only.
class RowQuantiser {
  public:
    __aicore__ inline void Init(TPipe &pipe, const ExchangeLayout &layout) {
        hidden_ = layout.hidden;
        element_ = layout.element;
        element_bytes_ = static_cast<uint32_t>(layout.out_row_bytes / layout.hidden);
        tile_ = Least(hidden_, QuantisedTile(element_bytes_));
        // One: with two, a load may be announced again before the vector unit has seen that of the tile before.
        pipe.InitBuffer(loads_, 1, tile_ * element_bytes_);
        pipe.InitBuffer(floats_, tile_ * sizeof(float));
        pipe.InitBuffer(scratch_, tile_ * sizeof(float));
        scale_at_ = (tile_ + EXCHANGE_UNIT_BYTES - 1) / EXCHANGE_UNIT_BYTES * EXCHANGE_UNIT_BYTES;
        pipe.InitBuffer(stores_, 2, scale_at_ + EXCHANGE_UNIT_BYTES);
    }

    __aicore__ inline uint32_t Tiles() const { return (hidden_ + tile_ - 1) / tile_; }

    // Begins a row. One of one tile stays in the unified buffer, a longer one is loaded again.
    __aicore__ inline void BeginRow(uint64_t row) {
        row_ = row;
        ScaleBy(LoadGreatest());
    }
    __aicore__ inline PlacedTile NextTile(uint32_t tile) {
        if (Tiles() > 1)
            LoadTile(tile);
        const uint32_t count = TileCount(tile);
        const auto elements = static_cast<int32_t>(count);
        const auto floats = floats_.Get<float>();
        auto values = stores_.AllocTensor<int8_t>();
        if (is_zero_) {
            Duplicate(floats, 0.0f, elements);
        } else {
            Muls(floats, floats, inverse_, elements);
            PipeBarrier<PIPE_V>();
            Mins(floats, floats, 127.0f, elements);
            PipeBarrier<PIPE_V>();
            Maxs(floats, floats, -127.0f, elements);
        }
        PipeBarrier<PIPE_V>();
        const auto whole = scratch_.Get<int32_t>();
        Cast(whole, floats, RoundMode::CAST_RINT, count);
        SetDeqScale(static_cast<half>(1.0f));
        PipeBarrier<PIPE_V>();
        // In the place of the floats, which are not needed any more.
        const auto halves = floats_.Get<half>();
        Cast(halves, whole, RoundMode::CAST_NONE, count);
        PipeBarrier<PIPE_V>();
        Cast(values, halves, RoundMode::CAST_TRUNC, count);
        Duplicate(values[scale_at_].template ReinterpretCast<float>(), scale_, static_cast<int32_t>(fold_least));
        stores_.EnQue(values);
        values = stores_.DeQue<int8_t>();
        return {values, values[scale_at_].template ReinterpretCast<float>(), tile * tile_, count};
    }
    __aicore__ inline void FreeTile(PlacedTile &tile) { stores_.FreeTensor(tile.values); }

    // Moves `count` scales, each at the beginning of a line from `lines` on, one after the other to where the lines
    // begin. A line is loaded before its place is taken, for a scale never moves up.
    __aicore__ inline void PackScales(uint64_t lines, uint64_t count) {
        constexpr uint32_t unit_floats = EXCHANGE_UNIT_BYTES / sizeof(float);
        constexpr uint8_t first_of_two = 1, first_of_four = 3;
        const uint64_t at_once = tile_ / unit_floats;
        const auto units = floats_.Get<float>(), quarters = scratch_.Get<float>();
        const auto packed = quarters[tile_ / 2];
        uint64_t kept;
        for (uint64_t first = 0; first < count; first += at_once) {
            const auto number = static_cast<uint32_t>(Least(count - first, at_once));
            Order<HardEvent::V_MTE2>();
            DataCopyPad(units, Global<float>(lines + first * EXCHANGE_LINE_BYTES),
                        DataCopyExtParams{static_cast<uint16_t>(number), EXCHANGE_UNIT_BYTES,
                                          EXCHANGE_LINE_BYTES - EXCHANGE_UNIT_BYTES, 0, 0},
                        DataCopyPadExtParams<float>{false, 0, 0, 0});
            Order<HardEvent::MTE2_V>();
            GatherMask(quarters, units, first_of_four, true, number * unit_floats, GatherMaskParams{1, 1, 0, 0}, kept);
            PipeBarrier<PIPE_V>();
            Order<HardEvent::MTE3_V>();
            GatherMask(packed, quarters, first_of_two, true, number * unit_floats / 4, GatherMaskParams{1, 1, 0, 0},
                       kept);
            Order<HardEvent::V_MTE3>();
            Store(Global<float>(lines + first * sizeof(float)), packed, number);
        }
    }

  private:
    __aicore__ inline int32_t LoadGreatest() {
        int32_t greatest = 0;
        for (uint32_t tile = 0; tile < Tiles(); ++tile) {
            LoadTile(tile);
            greatest = Most(greatest, Greatest(TileCount(tile)));
        }
        return greatest;
    }
    __aicore__ inline void ScaleBy(int32_t greatest) {
        // Magnitudes of floats compare like their bits; infinities and NaNs are the greatest.
        constexpr int32_t least_bits = 0x03800000, infinity_bits = 0x7f800000, nan_bits = 0x7fc00000; // 2^-120 first
        is_zero_ = greatest < least_bits || greatest >= infinity_bits;
        const float max = AsFloat(greatest);
        inverse_ = is_zero_ ? 0.0f : 127.0f / max;
        scale_ = greatest < least_bits ? 0.0f : greatest >= infinity_bits ? AsFloat(nan_bits) : max / 127.0f;
    }

    __aicore__ inline uint32_t TileCount(uint32_t tile) const { return Least(hidden_ - tile * tile_, tile_); }
    __aicore__ inline static float AsFloat(int32_t bits) {
        float value;
        __builtin_memcpy(&value, &bits, sizeof value);
        return value;
    }

    // A tile as floats in floats_.
    __aicore__ inline void LoadTile(uint32_t tile) {
        if (element_ == EXCHANGE_BF16)
            LoadFloats<bfloat16_t>(tile);
        else if (element_ == EXCHANGE_FP16)
            LoadFloats<half>(tile);
        else
            LoadFloats<float>(tile);
    }
    template <class Element> __aicore__ inline void LoadFloats(uint32_t tile) {
        const uint32_t count = TileCount(tile);
        auto elements = loads_.AllocTensor<Element>();
        Load(elements, Global<Element>(row_ + tile * tile_ * sizeof(Element)), count);
        loads_.EnQue(elements);
        elements = loads_.template DeQue<Element>();
        ToFloats(elements, count);
        loads_.FreeTensor(elements);
    }
    template <class Element> __aicore__ inline void ToFloats(const LocalTensor<Element> &elements, uint32_t count) {
        PipeBarrier<PIPE_V>();
        if constexpr (sizeof(Element) == sizeof(float))
            Muls(floats_.Get<float>(), elements, 1.0f, static_cast<int32_t>(count));
        else
            Cast(floats_.Get<float>(), elements, RoundMode::CAST_NONE, count);
        PipeBarrier<PIPE_V>();
    }

    // The bits of the greatest magnitude in floats_: folds halves on one another, as integers, so that the order of
    // NaNs does not matter. The last few are compared by the scalar unit.
    __aicore__ inline int32_t Greatest(uint32_t count) {
        const auto bits = scratch_.Get<int32_t>();
        Abs(scratch_.Get<float>(), floats_.Get<float>(), static_cast<int32_t>(count));
        while (count > fold_least) {
            const uint32_t half_count = (count / 2 + fold_least - 1) / fold_least * fold_least;
            PipeBarrier<PIPE_V>();
            Max(bits, bits, bits[half_count], static_cast<int32_t>(count - half_count));
            count = half_count;
        }
        Order<HardEvent::V_S>();
        int32_t greatest = 0;
        for (uint32_t i = 0; i < count; ++i)
            greatest = Most(greatest, bits.GetValue(i));
        Order<HardEvent::S_V>();
        return greatest;
    }

    uint64_t row_ = 0;
    uint32_t hidden_ = 0;
    uint32_t element_ = 0;
    uint32_t element_bytes_ = 0;
    uint32_t tile_ = 0;
    uint32_t scale_at_ = 0;
    float inverse_ = 0;
    float scale_ = 0;
    bool is_zero_ = false;
    TQue<TPosition::VECIN, 1> loads_;
    TQue<TPosition::VECOUT, 1> stores_;
    TBuf<TPosition::VECCALC> floats_, scratch_;
};

} // namespace ascend_kernels
