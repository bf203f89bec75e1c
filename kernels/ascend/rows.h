// Places rows: each core loads its units once and stores them where the experts read them, as they are or as int8 with
// a scale.
#pragma once

#include "control.h"
#include "quantise.h"
#include "routing.h"

namespace ascend_kernels {

class RowPlacer {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, const Routing &routing,
                                const DispatchArguments &arguments) {
        control_ = &control;
        routing_ = &routing;
        x_ = arguments.x;
        x_stride_ = arguments.x_stride;
        const ExchangeLayout &layout = control.layout();
        element_bytes_ = static_cast<uint32_t>(layout.out_row_bytes / layout.hidden);
        quantised_ = layout.quantised != 0;
        if (quantised_)
            quantiser_.Init(pipe, layout);
        else
            pipe.InitBuffer(rows_, 2, Least(static_cast<uint32_t>(layout.row_bytes), tile_bytes));
    }
    __aicore__ inline void UseSlot(uint32_t slot) { slot_ = slot; }

    // Places this core's part of the row of `token` at positions [first, last), of which those below zero are no
    // places.
    __aicore__ inline void Place(uint64_t token, const LocalTensor<int64_t> &positions, uint32_t first, uint32_t last) {
        if (quantised_)
            PlaceQuantised(token, positions, first, last);
        else
            PlaceAsItIs(token, positions, first, last);
    }

    // Packs the scales of `count` rows of the own window from row `first` on, which have arrived, for the experts.
    __aicore__ inline void PackScales(uint64_t first, uint64_t count) {
        if (quantised_)
            quantiser_.PackScales(Scale(static_cast<int64_t>(uint64_t(control_->rank()) << 32 | first)), count);
    }

  private:
    __aicore__ inline void PlaceAsItIs(uint64_t token, const LocalTensor<int64_t> &positions, uint32_t first,
                                       uint32_t last) {
        const Columns part = routing_->Part(token);
        const uint32_t end = (part.begin + part.count) * element_bytes_;
        for (uint32_t begin = part.begin * element_bytes_; begin < end; begin += tile_bytes) {
            const uint32_t bytes = Least(end - begin, tile_bytes);
            auto tile = rows_.AllocTensor<uint8_t>();
            Load(tile, Global<uint8_t>(x_ + token * x_stride_ + begin), bytes);
            rows_.EnQue(tile);
            tile = rows_.DeQue<uint8_t>();
            for (uint32_t place = first; place < last; ++place)
                if (const int64_t position = positions.GetValue(place); position >= 0)
                    // @protocol place-row
                    Store(Global<uint8_t>(Row(position) + begin), tile, bytes);
            rows_.FreeTensor(tile);
        }
    }

    // A core has whole rows of these.
    __aicore__ inline void PlaceQuantised(uint64_t token, const LocalTensor<int64_t> &positions, uint32_t first,
                                          uint32_t last) {
        quantiser_.BeginRow(x_ + token * x_stride_);
        for (uint32_t index = 0; index < quantiser_.Tiles(); ++index) {
            PlacedTile tile = quantiser_.NextTile(index);
            for (uint32_t place = first; place < last; ++place) {
                const int64_t position = positions.GetValue(place);
                if (position < 0)
                    continue;
                Store(Global<int8_t>(Row(position) + tile.begin), tile.values, tile.count);
                // @protocol place-scale. A scale has a line of its own: no two ranks share one.
                if (tile.begin == 0)
                    Store(Global<float>(Scale(position)), tile.scale, 1);
            }
            quantiser_.FreeTile(tile);
        }
    }

    __aicore__ inline uint64_t Index(int64_t position) const {
        return slot_ * control_->layout().capacity + static_cast<uint64_t>(position & 0xffffffff);
    }
    __aicore__ inline uint64_t Row(int64_t position) const {
        const ExchangeLayout &layout = control_->layout();
        return control_->Window(static_cast<uint32_t>(position >> 32)) + layout.rows +
               Index(position) * layout.row_bytes;
    }
    __aicore__ inline uint64_t Scale(int64_t position) const {
        return control_->Window(static_cast<uint32_t>(position >> 32)) + control_->layout().scales +
               Index(position) * EXCHANGE_LINE_BYTES;
    }

    Control *control_ = nullptr;
    const Routing *routing_ = nullptr;
    uint64_t x_ = 0;
    uint64_t x_stride_ = 0;
    uint32_t element_bytes_ = 0;
    uint32_t slot_ = 0;
    bool quantised_ = false;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> rows_;
    RowQuantiser quantiser_;
};

} // namespace ascend_kernels
