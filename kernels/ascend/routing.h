// What one core does in dispatch: a share of the units of all tokens' rows, and the ids of those tokens, a piece at a
// time. A share may begin and end within a row, of which other cores then have the rest.
#pragma once

#include "arguments.h"
#include "order.h"

namespace ascend_kernels {

// Ids of tokens [begin, end).
struct Piece {
    uint64_t begin, end;
    uint32_t pairs;
    bool is_counted; // false: a token that begins in the share of a core before
};

// A part of a row, in elements.
struct Columns {
    uint32_t begin, count;
};

class Routing {
  public:
    __aicore__ inline void Init(TPipe &pipe, const DispatchArguments &arguments) {
        arguments_ = &arguments;
        topk_ = arguments.common.layout.topk;
        units_ = arguments.common.layout.hidden / arguments.row_unit;
        share_ = ShareOf(static_cast<uint64_t>(GetBlockIdx()), uint64_t(arguments.tokens) * units_, arguments.segments);
        first_counted_ = (share_.begin + units_ - 1) / units_;
        end_ = (share_.end + units_ - 1) / units_;
        begin_ = share_.begin < share_.end ? share_.begin / units_ : end_;
        pipe.InitBuffer(ids_, PairsInPiece(topk_) * sizeof(int64_t));
    }

    // Tokens of which this core has units: [Begin(), End()). Those from FirstCounted() on begin in its share.
    __aicore__ inline uint64_t Begin() const { return begin_; }
    __aicore__ inline uint64_t FirstCounted() const { return first_counted_; }
    __aicore__ inline uint64_t End() const { return end_; }
    __aicore__ inline Columns Part(uint64_t token) const {
        const uint64_t first = token * units_;
        const uint64_t begin = share_.begin > first ? share_.begin - first : 0;
        const uint64_t end = Least(share_.end - first, uint64_t(units_));
        return {static_cast<uint32_t>(begin) * arguments_->row_unit,
                static_cast<uint32_t>(end - begin) * arguments_->row_unit};
    }

    // Loads the piece that begins with `token`. A token that a core before has counted is a piece of its own.
    __aicore__ inline Piece LoadPiece(uint64_t token) {
        const bool is_counted = token >= first_counted_;
        const uint64_t end = is_counted ? Least(end_, token + PairsInPiece(topk_) / topk_) : token + 1;
        const auto pairs = static_cast<uint32_t>(end - token) * topk_;
        Order<HardEvent::S_MTE2>();
        Load(ids_.Get<uint8_t>(), Global<uint8_t>(arguments_->ids + token * topk_ * arguments_->ids_bytes),
             pairs * arguments_->ids_bytes);
        Order<HardEvent::MTE2_S>();
        return {token, end, pairs, is_counted};
    }
    // Loads the ids of pairs [begin, begin + count) of all tokens, 512 at most, in the place of a piece.
    __aicore__ inline void LoadPairs(uint32_t begin, uint32_t count) {
        Order<HardEvent::S_MTE2>();
        Load(ids_.Get<uint8_t>(), Global<uint8_t>(arguments_->ids + uint64_t(begin) * arguments_->ids_bytes),
             count * arguments_->ids_bytes);
    }
    template <class Id> __aicore__ inline LocalTensor<Id> Ids() { return ids_.Get<Id>(); }
    // Of a pair of the piece that was loaded last.
    __aicore__ inline int64_t Id(uint32_t pair) {
        return arguments_->ids_bytes == sizeof(int64_t) ? ids_.Get<int64_t>().GetValue(pair)
                                                        : ids_.Get<int32_t>().GetValue(pair);
    }
    __aicore__ inline bool IsRepeated(uint32_t pair, int64_t id) {
        for (uint32_t earlier = pair / topk_ * topk_; earlier < pair; ++earlier)
            if (Id(earlier) == id)
                return true;
        return false;
    }

  private:
    const DispatchArguments *arguments_ = nullptr;
    uint32_t topk_ = 1;
    uint32_t units_ = 1;
    uint64_t first_counted_ = 0;
    uint64_t begin_ = 0;
    uint64_t end_ = 0;
    Share share_ = {};
    TBuf<TPosition::VECCALC> ids_;
};

} // namespace ascend_kernels
