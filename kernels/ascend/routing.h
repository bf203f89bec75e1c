// The (token, k) pairs of one core, in the order in which tokens and their ids come, a piece at a time.
#pragma once

#include "order.h"

namespace ascend_kernels {

constexpr uint32_t pairs_per_piece = 1024;

// Pairs [begin, end); ids are there from the beginning of begin's token on.
struct Piece {
    uint64_t loaded, begin, end;
};

class Routing {
  public:
    __aicore__ inline void Init(TPipe &pipe, const DispatchArguments &arguments) {
        ids_bytes_ = arguments.ids_bytes;
        topk_ = arguments.common.layout.topk;
        ids_ = arguments.ids;
        share_ = ShareOf(uint64_t(arguments.tokens) * topk_, arguments.segments);
        pipe.InitBuffer(piece_, PairsInPiece() * sizeof(int64_t));
    }

    __aicore__ inline uint32_t PairsInPiece() const {
        return (pairs_per_piece > topk_ ? pairs_per_piece / topk_ : 1) * topk_;
    }
    __aicore__ inline uint64_t Begin() const { return share_.begin; }
    __aicore__ inline uint64_t End() const { return share_.end; }

    // Loads the piece that begins with pair `begin` and ends with a token, or with this core's share.
    __aicore__ inline Piece LoadPiece(uint64_t begin) {
        const uint64_t loaded = begin / topk_ * topk_;
        const Piece piece = {loaded, begin, Least(share_.end, loaded + PairsInPiece())};
        const auto bytes = static_cast<uint32_t>((piece.end - loaded) * ids_bytes_);
        Order<HardEvent::S_MTE2>();
        Load(piece_.Get<uint8_t>(), Global<uint8_t>(ids_ + loaded * ids_bytes_), bytes);
        Order<HardEvent::MTE2_S>();
        return piece;
    }
    __aicore__ inline int64_t Id(const Piece &piece, uint64_t pair) const {
        const auto index = static_cast<uint32_t>(pair - piece.loaded);
        return ids_bytes_ == sizeof(int64_t) ? piece_.Get<int64_t>().GetValue(index)
                                             : piece_.Get<int32_t>().GetValue(index);
    }
    __aicore__ inline bool IsRepeated(const Piece &piece, uint64_t pair, int64_t id) const {
        for (uint64_t earlier = pair / topk_ * topk_; earlier < pair; ++earlier)
            if (Id(piece, earlier) == id)
                return true;
        return false;
    }

  private:
    uint64_t ids_ = 0;
    uint32_t ids_bytes_ = 0;
    uint32_t topk_ = 1;
    Share share_ = {};
    TBuf<TPosition::VECCALC> piece_;
};

} // namespace ascend_kernels
