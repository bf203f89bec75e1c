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

    // For int8, what other cores have to know of the rows in which this core's share begins and ends: the bits of the
    // greatest magnitude of its part of either. It travels as the finding of this core's verdict.
    __aicore__ inline uint64_t KeepParts() {
        if (!quantised_ || routing_->Begin() == routing_->End())
            return 0;
        first_greatest_ = KeepPart(routing_->Begin());
        last_greatest_ = routing_->End() - routing_->Begin() > 1 ? KeepPart(routing_->End() - 1) : first_greatest_;
        return uint64_t(last_greatest_) << 32 | uint64_t(first_greatest_);
    }
    // Takes note of what the others found; their verdicts are those of `stage`.
    __aicore__ inline void MergeParts(uint32_t stage) {
        if (!quantised_ || routing_->Begin() == routing_->End())
            return;
        control_->LoadFindings(stage);
        first_greatest_ = GreatestOfAll(routing_->Begin());
        last_greatest_ = GreatestOfAll(routing_->End() - 1);
    }

    // Places this core's part of the row of `token` at positions [first, last), of which those below zero are no
    // places.
    __aicore__ inline void Place(uint64_t token, const LocalTensor<int64_t> &positions, uint32_t first, uint32_t last) {
        if (quantised_)
            PlaceQuantised(token, positions, first, last);
        else
            PlaceAsItIs(token, positions, first, last);
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

    __aicore__ inline void PlaceQuantised(uint64_t token, const LocalTensor<int64_t> &positions, uint32_t first,
                                          uint32_t last) {
        const Columns part = routing_->Part(token);
        if (routing_->IsWhole(token))
            quantiser_.BeginRow(Elements(token));
        else if (token == routing_->Begin())
            quantiser_.BeginPart(0, Elements(token), part.count, first_greatest_);
        else
            quantiser_.BeginPart(1, Elements(token), part.count, last_greatest_);
        for (uint32_t index = 0; index < quantiser_.Tiles(); ++index) {
            PlacedTile tile = quantiser_.NextTile(index);
            for (uint32_t place = first; place < last; ++place) {
                const int64_t position = positions.GetValue(place);
                if (position < 0)
                    continue;
                const uint32_t begin = part.begin + tile.begin;
                Store(Global<int8_t>(Row(position) + begin), tile.values, tile.count);
                // @protocol place-scale. A scale has a line of its own: no two ranks or cores share one.
                if (begin == 0)
                    Store(Global<float>(Scale(position)), tile.scale, 1);
            }
            quantiser_.FreeTile(tile);
        }
    }

    // The greatest magnitude of this core's part of a row of which other cores have the rest.
    __aicore__ inline int32_t KeepPart(uint64_t token) {
        if (routing_->IsWhole(token))
            return 0;
        return quantiser_.KeepPart(token == routing_->Begin() ? 0 : 1, Elements(token), routing_->Part(token).count);
    }
    // The row in which a share ends is the last of that core's rows, the row in which it begins the first.
    __aicore__ inline int32_t GreatestOfAll(uint64_t token) const {
        const uint32_t own = control_->core();
        int32_t greatest = token == routing_->Begin() ? first_greatest_ : last_greatest_;
        for (uint32_t core = own; core-- > 0 && routing_->Meets(core, token);)
            greatest = Most(greatest, static_cast<int32_t>(control_->Finding(core) >> 32));
        for (uint32_t core = own + 1; core < control_->cores() && routing_->Meets(core, token); ++core)
            greatest = Most(greatest, static_cast<int32_t>(control_->Finding(core) & 0xffffffff));
        return greatest;
    }
    __aicore__ inline uint64_t Elements(uint64_t token) const {
        return x_ + token * x_stride_ + uint64_t(routing_->Part(token).begin) * element_bytes_;
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
    int32_t first_greatest_ = 0;
    int32_t last_greatest_ = 0;
    bool quantised_ = false;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> rows_;
    RowQuantiser quantiser_;
};

} // namespace ascend_kernels
