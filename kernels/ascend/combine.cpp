// Combine for A2 and A3 (dav-2201): done, reduce. No NPU has run this kernel; it was executed on host_model only.
#include "control.h"
#include "kernels.h"

namespace ascend_kernels {
namespace {

class Combine {
  public:
    __aicore__ inline void Run(TPipe &pipe, const CombineArguments &arguments) {
        arguments_ = arguments;
        control_.Init(pipe, arguments_.common);
        const ExchangeLayout &layout = control_.layout();
        part_ = {arguments_.slot, arguments_.part};
        topk_ = layout.topk;
        hidden_ = layout.hidden;
        tokens_in_piece_ = PairsInPiece(topk_) / topk_;
        const uint32_t tile = Least(hidden_, sum_tile);
        pipe.InitBuffer(positions_, tokens_in_piece_ * topk_ * sizeof(int64_t));
        pipe.InitBuffer(weights_, tokens_in_piece_ * topk_ * sizeof(float));
        pipe.InitBuffer(loads_, sum_loads, tile * ElementBytes());
        pipe.InitBuffer(stores_, 2, tile * ElementBytes());
        pipe.InitBuffer(products_, tile * sizeof(float));
        pipe.InitBuffer(sums_, tile * sizeof(float));

        Verdict found = Meet();
        if (found.result == EXCHANGE_OK && arguments_.only_meet == 0)
            found = Reduce();
        // One core waits for the ranks that nothing was read from.
        if (found.result == EXCHANGE_OK && control_.core() == 0 && !are_done_)
            found = WaitForDone(0, control_.ranks());
        if (found.result == EXCHANGE_OK && arguments_.only_meet == 0)
            control_.TimeStep(EXCHANGE_STEP_REDUCE);
        End(found);
    }

  private:
    // The first cores tell the ranks that this one's expert outputs are there.
    __aicore__ inline Verdict Meet() {
        const ExchangeLayout &layout = control_.layout();
        const bool is_sealed = control_.LoadState(control_.PartState(part_), control_.epoch, rendezvous_);
        control_.BeginStep(arguments_.only_meet != 0 ? EXCHANGE_STEP_REJOIN : EXCHANGE_STEP_DONE);
        if (control_.IsTimed())
            control_.Times().layer = arguments_.layer;
        ++rendezvous_;
        if (const Verdict refused = control_.RefusePoisoned(); refused.result != EXCHANGE_OK)
            return refused;
        if (!is_sealed)
            return control_.Corruption(EXCHANGE_REGION_STATE, control_.rank(), control_.epoch);
        lines_ = layout.done + part_.Lines(layout.ranks);
        if (control_.core() < control_.ranks())
            // @protocol push-done. The experts' kernels, and this rank's earlier reads, ended before this launch began.
            control_.PushWord(lines_ + control_.rank() * EXCHANGE_LINE_BYTES, control_.core(), control_.cores(),
                              SequenceWord(control_.epoch, rendezvous_));
        control_.BeginWait();
        return control_.Fault(EXCHANGE_OK, 0);
    }
    // Waits for the done words of ranks [begin, end), and sees whether those of all are there.
    __aicore__ inline Verdict WaitForDone(uint32_t begin, uint32_t end) {
        const uint64_t epoch = control_.epoch, rendezvous = rendezvous_, word = SequenceWord(epoch, rendezvous);
        // @protocol wait-done. A peer may be one rendezvous ahead.
        const auto judge = [word, epoch, rendezvous](uint64_t seen) __aicore__ {
            if (EpochOf(seen) != epoch)
                return SeenOf(seen, word);
            if (!window_words::rendezvous_is_possible(TagOf(seen), rendezvous))
                return Seen::impossible;
            return seen >= word ? Seen::ready : Seen::pending;
        };
        return control_.WaitForWords(EXCHANGE_REGION_DONE, lines_, begin, end, are_done_, judge);
    }
    // The host is told, and the slot's state changes, once all cores have seen the one and found what they find. Each
    // has read the same words there, even if they were no state, so that all make the same stamp of them.
    __aicore__ inline void End(const Verdict &found) {
        const uint64_t stamp = SequenceWord(control_.epoch, rendezvous_);
        if (control_.core() != 0) {
            control_.StoreEnd(stamp, found);
            return;
        }
        control_.Conclude(control_.WaitForEnds(stamp, found));
        // Last: who still comes to see it finds that the session was lost. It changes in any case, and the stamp so.
        control_.StoreState(control_.PartState(part_), control_.epoch, rendezvous_);
    }

    // Sums up this core's share of all tokens' elements, which may begin and end within a token.
    __aicore__ inline Verdict Reduce() {
        const uint32_t sum_unit = SumUnit(control_.layout());
        const uint64_t units_of_token = hidden_ / sum_unit;
        const Share share = ShareOf(control_.core(), arguments_.tokens * units_of_token, arguments_.segments);
        uint64_t piece_end = 0, piece_begin = 0;
        for (uint64_t unit = share.begin; unit < share.end;) {
            const uint64_t token = unit / units_of_token;
            if (token >= piece_end) {
                piece_begin = token;
                piece_end = Least(token + tokens_in_piece_, (share.end + units_of_token - 1) / units_of_token);
                LoadTerms(piece_begin, piece_end);
            }
            const auto first_term = static_cast<uint32_t>(token - piece_begin) * topk_;
            if (const Verdict verdict = WaitForTerms(first_term); verdict.result != EXCHANGE_OK)
                return verdict;
            control_.TimeStep(EXCHANGE_STEP_REDUCE);
            const uint64_t end = Least(share.end, (token + 1) * units_of_token);
            const auto begin_column = static_cast<uint32_t>((unit - token * units_of_token) * sum_unit);
            const auto end_column = static_cast<uint32_t>((end - token * units_of_token) * sum_unit);
            for (uint32_t column = begin_column; column < end_column; column += sum_tile)
                SumTile(token, first_term, column, Least(end_column - column, sum_tile));
            unit = end;
        }
        return control_.Fault(EXCHANGE_OK, 0);
    }
    // Waits for the ranks on which a token's results lie.
    __aicore__ inline Verdict WaitForTerms(uint32_t first_term) {
        for (uint32_t term = first_term; term < first_term + topk_ && !are_done_; ++term) {
            const int64_t position = positions_.Get<int64_t>().GetValue(term);
            if (position < 0)
                continue;
            const auto rank = static_cast<uint32_t>(position >> 32);
            if (const Verdict verdict = WaitForDone(rank, rank + 1); verdict.result != EXCHANGE_OK)
                return verdict;
        }
        return control_.Fault(EXCHANGE_OK, 0);
    }
    __aicore__ inline void LoadTerms(uint64_t begin, uint64_t end) {
        const auto count = static_cast<uint32_t>(end - begin) * topk_;
        Order<HardEvent::S_MTE2>();
        Load(positions_.Get<int64_t>(), Global<int64_t>(arguments_.positions + begin * topk_ * sizeof(int64_t)), count);
        Load(weights_.Get<float>(), Global<float>(arguments_.weights + begin * topk_ * sizeof(float)), count);
        Order<HardEvent::MTE2_S>();
    }

    __aicore__ inline void SumTile(uint64_t token, uint32_t first_term, uint32_t column, uint32_t count) {
        const uint32_t element = control_.layout().element;
        if (element == EXCHANGE_BF16)
            SumElements<bfloat16_t>(token, first_term, column, count);
        else if (element == EXCHANGE_FP16)
            SumElements<half>(token, first_term, column, count);
        else
            SumElements<float>(token, first_term, column, count);
    }
    // sum = sum + weight * value in k order from zero, in fp32, product and sum rounded each, rounded once at the end.
    template <class Element>
    __aicore__ inline void SumElements(uint64_t token, uint32_t first_term, uint32_t column, uint32_t count) {
        const auto elements = static_cast<int32_t>(count);
        const auto sums = sums_.Get<float>(), products = products_.Get<float>();
        PipeBarrier<PIPE_V>();
        Duplicate(sums, 0.0f, elements);
        for (uint32_t term = first_term; term < first_term + topk_; ++term) {
            const int64_t position = positions_.Get<int64_t>().GetValue(term);
            if (position < 0)
                continue;
            const float weight = weights_.Get<float>().GetValue(term);
            auto row = loads_.template AllocTensor<Element>();
            // @protocol read-out
            Load(row, Global<Element>(Result(position) + column * sizeof(Element)), count);
            loads_.EnQue(row);
            row = loads_.template DeQue<Element>();
            PipeBarrier<PIPE_V>();
            if constexpr (sizeof(Element) == sizeof(float)) {
                Muls(products, row, weight, elements);
            } else {
                Cast(products, row, RoundMode::CAST_NONE, count);
                PipeBarrier<PIPE_V>();
                Muls(products, products, weight, elements);
            }
            loads_.FreeTensor(row);
            PipeBarrier<PIPE_V>();
            Add(sums, sums, products, elements);
        }
        PipeBarrier<PIPE_V>();
        auto result = stores_.template AllocTensor<Element>();
        if constexpr (sizeof(Element) == sizeof(float))
            Muls(result, sums, 1.0f, elements);
        else
            Cast(result, sums, RoundMode::CAST_RINT, count);
        stores_.EnQue(result);
        result = stores_.template DeQue<Element>();
        Store(Global<Element>(arguments_.out + token * arguments_.out_stride + column * sizeof(Element)), result,
              count);
        stores_.FreeTensor(result);
    }

    __aicore__ inline uint32_t ElementBytes() const {
        return static_cast<uint32_t>(control_.layout().out_row_bytes / hidden_);
    }
    __aicore__ inline uint64_t Result(int64_t position) const {
        const ExchangeLayout &layout = control_.layout();
        const uint64_t row = arguments_.slot * layout.capacity + static_cast<uint64_t>(position & 0xffffffff);
        return control_.Window(static_cast<uint32_t>(position >> 32)) + layout.out + row * layout.out_row_bytes;
    }

    CombineArguments arguments_;
    Control control_;
    Part part_ = {};
    uint32_t topk_ = 1;
    uint32_t hidden_ = 0;
    uint32_t tokens_in_piece_ = 1;
    uint64_t rendezvous_ = 0;
    uint64_t lines_ = 0;
    bool are_done_ = false;
    TQue<TPosition::VECIN, 1> loads_;
    TQue<TPosition::VECOUT, 1> stores_;
    TBuf<TPosition::VECCALC> positions_, weights_, products_, sums_;
};

} // namespace
} // namespace ascend_kernels

#ifndef ASCEND_KERNELS_HAVE_OTHER_ENTRIES
extern "C" __global__ __aicore__ void moe_combine(ascend_kernels::CombineArguments arguments) {
    AscendC::TPipe pipe;
    ascend_kernels::Combine combine;
    combine.Run(pipe, arguments);
}
#endif
