// The (token, k) pairs of this rank: how many name each expert, and how many of them come before one of this core's.
//
// Few pairs are compared as vectors by every core, which then needs nothing of the others. Of many each core counts its
// own, and the cores read each other's histograms.
#pragma once

#include "control.h"
#include "routing.h"

namespace ascend_kernels {

class OwnPairs {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, const DispatchArguments &arguments) {
        control_ = &control;
        arguments_ = &arguments;
        experts_ = control.layout().experts;
        pairs_ = arguments.tokens * control.layout().topk;
        const uint32_t bytes = experts_ * sizeof(int32_t);
        is_compared_ = AreCompared(arguments, control.cores());
        pipe.InitBuffer(ids_, compared_pairs * sizeof(float));
        pipe.InitBuffer(differences_, compared_pairs * sizeof(float));
        pipe.InitBuffer(work_, compared_work);
        pipe.InitBuffer(earlier_, compared_own * sizeof(float));
        pipe.InitBuffer(equal_, (EXCHANGE_COUNTS_PER_UNIT + 1) * sizeof(float));
        pipe.InitBuffer(own_, bytes);
        pipe.InitBuffer(sums_, bytes);
        pipe.InitBuffer(loads_, 2, bytes);
    }

    // Looks at the ids of the tokens that begin in this core's share, -1 skipped, and counts them if the cores read
    // each other's counts. Returns what is wrong with the first bad id.
    __aicore__ inline Verdict Check(Routing &routing) {
        const auto counts = own_.Get<int32_t>();
        const uint32_t topk = control_->layout().topk;
        if (!is_compared_) {
            Duplicate(counts, 0, static_cast<int32_t>(experts_));
            Order<HardEvent::V_S>();
        }
        for (uint64_t token = routing.FirstCounted(); token < routing.End();) {
            const Piece piece = routing.LoadPiece(token);
            uint64_t named = 0; // by the token, one bit for every 64th expert
            for (uint32_t pair = 0; pair < piece.pairs; ++pair) {
                if (pair % topk == 0)
                    named = 0;
                const int64_t id = routing.Id(pair);
                if (id < -1 || id >= experts_)
                    return control_->Fault(EXCHANGE_INVALID_INPUT, control_->rank(), EXCHANGE_INPUT_EXPERT_ID, id);
                if (id < 0)
                    continue;
                const uint64_t bit = uint64_t(1) << (id & 63);
                const bool may_repeat = (named & bit) != 0;
                named |= bit;
                if (may_repeat && control_->layout().distinct_topk != 0 && routing.IsRepeated(pair, id))
                    return control_->Fault(EXCHANGE_INVALID_INPUT, control_->rank(), EXCHANGE_INPUT_REPEATED_EXPERT,
                                           id);
                if (!is_compared_)
                    counts.SetValue(static_cast<uint32_t>(id), counts.GetValue(static_cast<uint32_t>(id)) + 1);
            }
            token = piece.end;
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }

    // What can be known before the other cores have looked at their ids; for them, if they need it.
    __aicore__ inline void Prepare(Routing &routing) {
        if (is_compared_) {
            LoadIds(routing);
            FindEarlier(routing);
            return;
        }
        Order<HardEvent::S_MTE3>();
        Store(Global<int32_t>(Histogram(control_->core())), own_.Get<int32_t>(), experts_);
    }
    // The rest, after a SyncAll behind it.
    __aicore__ inline void Finish() {
        if (is_compared_)
            return;
        SumHistograms();
        Order<HardEvent::V_S>();
    }

    // Pairs of this rank that name the `number` experts from `first` on, as the payload of a count unit has them.
    __aicore__ inline void CountUnit(uint32_t first, uint32_t number, const LocalTensor<uint32_t> &counts) {
        if (is_compared_)
            for (uint32_t i = 0; i < number; ++i)
                CountOthers(equal_, i, static_cast<float>(first + i), pairs_);
        if (is_compared_ && pairs_ > 0)
            Order<HardEvent::V_S>();
        for (uint32_t i = 0; i < EXCHANGE_COUNTS_PER_UNIT; ++i)
            counts.SetValue(i, i < number ? CountOf(first + i, i) : 0);
        if (is_compared_ && pairs_ > 0)
            Order<HardEvent::S_V>();
    }
    // Pairs that name any expert.
    __aicore__ inline uint64_t CountRouted() {
        if (is_compared_) {
            if (pairs_ == 0)
                return 0;
            CountOthers(equal_, EXCHANGE_COUNTS_PER_UNIT, -1.0f, pairs_);
            Order<HardEvent::V_S>();
            return static_cast<uint64_t>(Result(equal_, EXCHANGE_COUNTS_PER_UNIT));
        }
        uint64_t routed = 0;
        for (uint32_t expert = 0; expert < experts_; ++expert)
            routed += static_cast<uint32_t>(sums_.Get<int32_t>().GetValue(expert));
        return routed;
    }

    // How many earlier pairs of this rank name the expert of `pair`; to be asked once for each of this core's, in
    // order.
    __aicore__ inline uint32_t TakeIndex(uint64_t pair, uint32_t expert) {
        if (is_compared_)
            return pair == 0 ? 0 : static_cast<uint32_t>(pair) - Result(earlier_, static_cast<uint32_t>(pair - first_));
        const auto own = own_.Get<int32_t>();
        const int32_t index = own.GetValue(expert);
        own.SetValue(expert, index + 1);
        return static_cast<uint32_t>(index);
    }
    // Takes back that `expert` was counted: the cores before this one counted a token of which it has a part.
    __aicore__ inline void Return(uint32_t expert) {
        if (!is_compared_)
            own_.Get<int32_t>().SetValue(expert, own_.Get<int32_t>().GetValue(expert) - 1);
    }

  private:
    // The same on every core: with equal shares, none has units of more tokens than this.
    __aicore__ inline static bool AreCompared(const DispatchArguments &arguments, uint32_t cores) {
        const uint32_t topk = arguments.common.layout.topk;
        return arguments.segments == 0 && uint64_t(arguments.tokens) * topk <= compared_pairs &&
               (arguments.tokens / cores + 2) * topk <= compared_own;
    }
    __aicore__ inline uint64_t Histogram(uint32_t core) const {
        return arguments_->common.workspace + HistogramOffset(control_->layout(), core, control_->cores());
    }

    // All ids as floats, which have room for every expert.
    __aicore__ inline void LoadIds(Routing &routing) {
        const uint32_t pieces = (pairs_ + loaded_pairs - 1) / loaded_pairs;
        for (uint32_t i = 0; i < pieces; ++i) {
            // Each core begins with another one.
            const uint32_t begin = (i + control_->core()) % pieces * loaded_pairs;
            const uint32_t count = Least(pairs_ - begin, loaded_pairs);
            routing.LoadPairs(begin, count);
            Order<HardEvent::MTE2_V>();
            const auto ids = ids_.Get<float>()[begin];
            if (arguments_->ids_bytes == sizeof(int64_t)) {
                const auto whole = differences_.Get<int32_t>();
                PipeBarrier<PIPE_V>();
                Cast(whole, routing.Ids<int64_t>(), RoundMode::CAST_NONE, count);
                PipeBarrier<PIPE_V>();
                Cast(ids, whole, RoundMode::CAST_RINT, count);
            } else {
                Cast(ids, routing.Ids<int32_t>(), RoundMode::CAST_RINT, count);
            }
            Order<HardEvent::V_MTE2>();
            Order<HardEvent::V_S>();
        }
        PipeBarrier<PIPE_V>();
    }
    __aicore__ inline void FindEarlier(Routing &routing) {
        const uint32_t topk = control_->layout().topk;
        first_ = routing.Begin() * topk;
        for (uint64_t pair = first_; pair < routing.End() * topk; ++pair) {
            const auto slot = static_cast<uint32_t>(pair - first_);
            const auto local = static_cast<uint32_t>(pair);
            if (local > 0)
                CountOthers(earlier_, slot, ids_.Get<float>().GetValue(local), local);
        }
        Order<HardEvent::V_S>();
    }
    // In place `slot` of `results`: how many of the first `count` ids are not `id`.
    __aicore__ inline void CountOthers(TBuf<TPosition::VECCALC> &results, uint32_t slot, float id, uint32_t count) {
        if (count == 0)
            return;
        const auto differences = differences_.Get<float>();
        const auto elements = static_cast<int32_t>(count);
        PipeBarrier<PIPE_V>();
        Adds(differences, ids_.Get<float>(), -id, elements);
        PipeBarrier<PIPE_V>();
        Abs(differences, differences, elements);
        PipeBarrier<PIPE_V>();
        Mins(differences, differences, 1.0f, elements);
        PipeBarrier<PIPE_V>();
        ReduceSum(results.Get<float>()[slot], differences, work_.Get<float>(), elements);
    }
    __aicore__ inline uint32_t Result(TBuf<TPosition::VECCALC> &results, uint32_t slot) {
        return static_cast<uint32_t>(results.Get<float>().GetValue(slot));
    }
    __aicore__ inline uint32_t CountOf(uint32_t expert, uint32_t slot) {
        if (is_compared_)
            return pairs_ == 0 ? 0 : pairs_ - Result(equal_, slot);
        return static_cast<uint32_t>(sums_.Get<int32_t>().GetValue(expert));
    }

    // sums_ = the histograms of all cores, own_ = those of the cores before this one.
    __aicore__ inline void SumHistograms() {
        const auto sums = sums_.Get<int32_t>();
        const auto count = static_cast<int32_t>(experts_);
        Duplicate(sums, 0, count);
        for (uint32_t core = 0; core < control_->cores(); ++core) {
            PipeBarrier<PIPE_V>();
            if (core == control_->core()) {
                Adds(own_.Get<int32_t>(), sums, 0, count);
                PipeBarrier<PIPE_V>();
            }
            auto counts = loads_.AllocTensor<int32_t>();
            Load(counts, Global<int32_t>(Histogram(core)), experts_);
            loads_.EnQue(counts);
            counts = loads_.DeQue<int32_t>();
            Add(sums, sums, counts, count);
            loads_.FreeTensor(counts);
        }
        PipeBarrier<PIPE_V>();
    }

    Control *control_ = nullptr;
    const DispatchArguments *arguments_ = nullptr;
    uint32_t experts_ = 0;
    uint32_t pairs_ = 0;
    uint64_t first_ = 0;
    bool is_compared_ = false;
    TBuf<TPosition::VECCALC> ids_, differences_, work_, earlier_, equal_, own_, sums_;
    TQue<TPosition::VECIN, 1> loads_;
};

} // namespace ascend_kernels
