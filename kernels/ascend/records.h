// Records that every rank has pushed into the own window: of each a header unit and units of six numbers.
//
// In the unified buffer they lie as in the window: a unit of 32 bytes is its sequence word and six numbers, so that a
// unit is a block of the vector unit and records are added and compared without being unpacked.
#pragma once

#include "control.h"

namespace ascend_kernels {

constexpr uint32_t unit_halves = EXCHANGE_UNIT_BYTES / sizeof(uint32_t);

__aicore__ inline uint64_t Both(uint64_t numbers) { return (numbers & 0xffffffff) + (numbers >> 32); }
// The numbers of a unit, added up.
template <class Words> __aicore__ inline uint64_t SumOfUnit(const Words &words, uint32_t unit) {
    uint64_t sum = 0;
    for (uint32_t pair = 1; pair < unit_words; ++pair)
        sum += Both(words.GetValue(unit * unit_words + pair));
    return sum;
}

// The lane of a record in which its `index`-th number is.
__aicore__ inline uint32_t LaneOf(uint32_t index) {
    return (1 + index / EXCHANGE_COUNTS_PER_UNIT) * unit_halves + 2 + index % EXCHANGE_COUNTS_PER_UNIT;
}

class Records {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, uint32_t kind) {
        control_ = &control;
        kind_ = kind;
        const ExchangeLayout &layout = control.layout();
        units_ = 1 + layout.count_units;
        at_once_ = RecordsAtOnce(layout);
        strip_ = FoldedAtOnce(layout);
        pipe.InitBuffer(records_, at_once_ * RecordBytes(layout));
        pipe.InitBuffer(greatest_, strip_ * RecordBytes(layout));
        pipe.InitBuffer(least_, strip_ * RecordBytes(layout));
    }

    // Waits for the records of up to AtOnce() ranks from `first` on, whose first lies at `region` of the own window, or
    // for what is wrong with one. All are waited for before a refusal of one counts. `judge(i, verdict)` says whether
    // record i is there, and in `verdict` what is wrong with it; `is_well(i)` of one whose words are there the same in
    // less time. Each core looks so at a part of them: what one finds comes together after the rows.
    template <class IsWell, class Judge>
    __aicore__ inline Verdict Wait(uint64_t region, uint32_t first, IsWell is_well, Judge judge) {
        first_ = first;
        number_ = Least(at_once_, control_->ranks() - first);
        address_ = control_->Own(region) + uint64_t(first) * RecordBytes(control_->layout());
        middle_ = control_->core() * Words() / control_->cores() / served_words * served_words;
        for (uint32_t polls = 1;; ++polls) {
            Load();
            if (AreThere(is_well)) {
                control_->EndWait();
                return control_->Fault(EXCHANGE_OK, 0);
            }
            if (polls % polls_between_looks != 0)
                continue;
            control_->LookAround();
            Load();
            Verdict merged = control_->Fault(EXCHANGE_OK, 0);
            uint32_t missing = control_->ranks();
            for (uint32_t i = number_; i-- > 0;) {
                Verdict verdict = control_->Fault(EXCHANGE_OK, 0);
                if (judge(i, verdict) == Seen::pending)
                    missing = first_ + i;
                if (verdict.result != EXCHANGE_OK && Severity(verdict.result) >= Severity(merged.result))
                    merged = verdict;
            }
            if (Poisons(merged.result) || missing == control_->ranks()) {
                control_->EndWait();
                return merged;
            }
            if (const Verdict verdict = control_->JudgeDelay(missing); verdict.result != EXCHANGE_OK)
                return verdict;
        }
    }

    __aicore__ inline uint32_t AtOnce() const { return at_once_; }
    // Those at hand: of ranks First() on, Number() of them.
    __aicore__ inline uint32_t First() const { return first_; }
    __aicore__ inline uint32_t Number() const { return number_; }
    __aicore__ inline LocalTensor<uint64_t> At(uint32_t i) { return records_.Get<uint64_t>()[i * units_ * unit_words]; }
    __aicore__ inline LocalTensor<int32_t> LanesAt(uint32_t i) {
        return records_.Get<int32_t>()[i * units_ * unit_halves];
    }
    __aicore__ inline uint64_t Expected() const { return SequenceWord(control_->epoch, kind_); }
    // Whether record i has the words of this exchange, or the first other one in `value`.
    __aicore__ inline Seen JudgeWords(uint32_t i, uint64_t &value) {
        for (uint32_t unit = 0; unit < units_; ++unit) {
            value = At(i).GetValue(unit * unit_words);
            if (value != Expected())
                return SeenOf(value, Expected());
        }
        return Seen::ready;
    }
    // The numbers of record i, added up.
    __aicore__ inline uint64_t SumAt(uint32_t i) {
        uint64_t sum = 0;
        for (uint32_t unit = 1; unit < units_; ++unit)
            sum += SumOfUnit(At(i), unit);
        return sum;
    }

    // In Greatest() and Least() what is greatest and least, lane by lane, of the records at hand: one record each.
    __aicore__ inline void FoldToRecord() {
        const auto greatest = greatest_.Get<int32_t>(), least = least_.Get<int32_t>();
        const uint32_t count = Least(strip_, (number_ + 1) / 2), last = number_ - count;
        const uint32_t lanes = units_ * unit_halves;
        Order<HardEvent::S_V>();
        PipeBarrier<PIPE_V>();
        Max(greatest, LanesAt(0), LanesAt(last), static_cast<int32_t>(count * lanes));
        Min(least, LanesAt(0), LanesAt(last), static_cast<int32_t>(count * lanes));
        for (uint32_t first = count; first < last; first += count) {
            const auto some = static_cast<int32_t>(Least(count, last - first) * lanes);
            PipeBarrier<PIPE_V>();
            Max(greatest, greatest, LanesAt(first), some);
            Min(least, least, LanesAt(first), some);
        }
        Fold(count, lanes);
    }
    // So many records they have room for.
    __aicore__ inline uint32_t Strip() const { return strip_; }
    __aicore__ inline TBuf<TPosition::VECCALC> &Greatest() { return greatest_; }
    __aicore__ inline TBuf<TPosition::VECCALC> &Smallest() { return least_; }

  private:
    static constexpr uint32_t served_words = 512 / sizeof(uint64_t);
    // Polls that only see whether everything is there, to one that looks at what is missing, at the time and at the
    // others.
    static constexpr uint32_t polls_between_looks = 8;

    __aicore__ inline uint32_t Words() const { return number_ * units_ * unit_words; }
    __aicore__ inline void LoadWords(uint32_t begin, uint32_t end) {
        ascend_kernels::Load(records_.Get<uint64_t>()[begin], Global<uint64_t>(address_ + begin * sizeof(uint64_t)),
                             end - begin);
    }
    // In two parts: memory serves cores slowly that ask for the same 512 bytes at a time.
    __aicore__ inline void Load() {
        Order<HardEvent::S_MTE2>();
        Order<HardEvent::V_MTE2>();
        LoadWords(middle_, Words());
        if (middle_ > 0)
            LoadWords(0, middle_);
        Order<HardEvent::MTE2_S>();
    }
    // Of so many pieces of `lanes` lanes, one.
    __aicore__ inline void Fold(uint32_t count, uint32_t lanes) {
        const auto greatest = greatest_.Get<int32_t>(), least = least_.Get<int32_t>();
        while (count > 1) {
            const uint32_t half = (count + 1) / 2;
            const auto folded = static_cast<int32_t>((count - half) * lanes);
            PipeBarrier<PIPE_V>();
            Max(greatest, greatest, greatest[half * lanes], folded);
            Min(least, least, least[half * lanes], folded);
            count = half;
        }
    }
    // Whether every unit at hand has the word that is waited for: the greatest and the least are it.
    template <class IsWell> __aicore__ inline bool AreThere(IsWell is_well) {
        FoldToRecord();
        Fold(units_, unit_halves);
        Order<HardEvent::V_S>();
        // @protocol wait-headers. Each unit was loaded whole: with the word its payload is there.
        // @protocol wait-counts
        // @protocol wait-grants
        if (greatest_.Get<uint64_t>().GetValue(0) != Expected() || least_.Get<uint64_t>().GetValue(0) != Expected())
            return false;
        const uint32_t cores = control_->cores();
        for (uint32_t i = (control_->core() + cores - first_ % cores) % cores; i < number_; i += cores)
            if (!is_well(i))
                return false;
        return true;
    }

    Control *control_ = nullptr;
    uint32_t kind_ = 0;
    uint32_t units_ = 1; // of a record
    uint32_t at_once_ = 1;
    uint32_t strip_ = 1;
    uint32_t first_ = 0;
    uint32_t number_ = 0;
    uint32_t middle_ = 0;
    uint64_t address_ = 0;
    TBuf<TPosition::VECCALC> records_, greatest_, least_;
};

} // namespace ascend_kernels
