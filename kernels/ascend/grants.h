// Where each row goes if every rank has the counts of its own experts only: it grants each source the rows at which the
// source's begin, and tells how many there are in all.
#pragma once

#include "counts.h"

namespace ascend_kernels {

// A grant's header unit in 8-byte words: sequence word; rows in the window of the rank that grants; their sum with the
// rows granted.
constexpr uint32_t grant_total = 1;
constexpr uint32_t grant_sum = 2;

class Grants {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, Records &records, Counts &counts,
                                const DispatchArguments &arguments) {
        control_ = &control;
        records_ = &records;
        counts_ = &counts;
        arguments_ = &arguments;
        const ExchangeLayout &layout = control.layout();
        if (layout.granting == 0)
            return;
        local_experts_ = layout.counted;
        record_ = 1 + layout.count_units;
        pipe.InitBuffer(begins_, RecordBytes(layout));
    }

    // Once the counts of all are added up: grants the ranks that this core serves their places and waits for what every
    // rank grants this one. Every core of every rank comes to the same decision about what fits.
    __aicore__ inline Verdict Exchange(Part part, uint64_t &total) {
        part_ = part;
        total = LayOut();
        Push(total);
        control_->BeginWait();
        const auto judge = [this](uint32_t i, Verdict &verdict) __aicore__ { return JudgeGrant(i, verdict); };
        const auto is_well = [this](uint32_t i) __aicore__ {
            Verdict unused;
            return JudgeGrant(i, unused) == Seen::ready;
        };
        const Verdict verdict = records_->Wait(control_->layout().grants, 0, is_well, judge);
        return verdict.result == EXCHANGE_OK ? JudgeTotals() : verdict;
    }

    // The row of the pair of this rank that has `index` earlier ones of the same expert, in the expert's window; -1
    // where nobody can have granted it, which Misplaced() then tells.
    __aicore__ inline int64_t RowOf(uint32_t expert, uint32_t index) {
        const uint32_t owner = expert / local_experts_, local = expert % local_experts_;
        const auto begin = static_cast<uint32_t>(records_->LanesAt(owner).GetValue(LaneOf(local)));
        const ExchangeLayout &layout = control_->layout();
        const uint64_t row = uint64_t(begin) + index, first = part_.FirstRow(layout);
        if (begin >= first && row < first + part_.Capacity(layout))
            return static_cast<int64_t>(row);
        if (misplaced_.result == EXCHANGE_OK)
            misplaced_ = control_->Corruption(EXCHANGE_REGION_GRANTS, owner, begin);
        return -1;
    }
    __aicore__ inline const Verdict &Misplaced() const { return misplaced_; }

    // What the host sees of the totals; one core does it.
    __aicore__ inline void StoreTotals() {
        constexpr uint32_t word = sizeof(uint64_t);
        const auto record = static_cast<uint32_t>(RecordBytes(control_->layout()));
        const auto units = records_->Greatest().Get<uint64_t>();
        const uint32_t ranks = control_->ranks();
        Order<HardEvent::S_MTE2>();
        for (uint32_t owner = 0; owner < ranks; owner += records_->Strip()) {
            const auto count = static_cast<uint16_t>(Least(records_->Strip(), ranks - owner));
            Order<HardEvent::MTE3_MTE2>();
            DataCopyPad(
                units, Global<uint64_t>(control_->Own(control_->layout().grants) + owner * record + grant_total * word),
                DataCopyExtParams{count, word, record - word, 0, 0}, DataCopyPadExtParams<uint64_t>{false, 0, 0, 0});
            Order<HardEvent::MTE2_MTE3>();
            DataCopyPad(Global<uint64_t>(arguments_->totals + owner * word), units,
                        DataCopyExtParams{count, word, 0, 0, 0});
        }
    }

  private:
    __aicore__ inline int32_t RecordLanes() const { return static_cast<int32_t>(record_ * unit_halves); }

    // begins_ = as a record, the rows at which those of each expert begin; returns how many there are.
    __aicore__ inline uint64_t LayOut() {
        const auto begins = begins_.Get<uint32_t>();
        Duplicate(begins_.Get<int32_t>(), 0, RecordLanes());
        Order<HardEvent::V_S>();
        const uint64_t first = part_.FirstRow(control_->layout());
        uint64_t row = first;
        for (uint32_t local = 0; local < local_experts_; ++local) {
            begins.SetValue(LaneOf(local), static_cast<uint32_t>(row));
            row += counts_->OwnCount(local);
        }
        return row - first;
    }
    __aicore__ inline void Push(uint64_t total) {
        const Served served = counts_->ServedRanks();
        const auto lanes = counts_->Before().Get<int32_t>();
        Order<HardEvent::S_V>();
        PipeBarrier<PIPE_V>();
        for (uint32_t i = 0; i < served.Number(); ++i)
            Add(lanes[i * RecordLanes()], lanes[i * RecordLanes()], begins_.Get<int32_t>(), RecordLanes());
        Order<HardEvent::V_S>();
        const auto grants = counts_->Before().Get<uint64_t>();
        for (uint32_t i = 0; i < served.Number(); ++i)
            FillGrant(grants[i * record_ * unit_words], total);
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 0; i < served.Number(); ++i) {
            const uint32_t peer = served.Rotated(control_->rank(), i);
            // @protocol push-grant. Each unit is stored whole and carries its word: nothing has to come before it.
            Store(Global<uint64_t>(control_->Window(peer) + control_->layout().grants +
                                   control_->rank() * RecordBytes(control_->layout())),
                  grants[(peer - served.begin) * record_ * unit_words], record_ * unit_words);
        }
    }
    __aicore__ inline void FillGrant(const LocalTensor<uint64_t> &words, uint64_t total) {
        uint64_t sum = total;
        for (uint32_t unit = 0; unit < record_; ++unit) {
            words.SetValue(unit * unit_words, records_->Expected());
            sum += unit > 0 ? SumOfUnit(words, unit) : 0;
        }
        words.SetValue(grant_total, total);
        words.SetValue(grant_sum, sum);
        words.SetValue(unit_words - 1, 0);
    }

    // A grant that is there and impossible says so in `verdict`.
    __aicore__ inline Seen JudgeGrant(uint32_t i, Verdict &verdict) {
        uint64_t value = 0;
        Seen seen = records_->JudgeWords(i, value);
        const ExchangeLayout &layout = control_->layout();
        const uint64_t most = uint64_t(layout.ranks) * layout.max_tokens * layout.topk;
        const uint64_t total = records_->At(i).GetValue(grant_total);
        if (seen == Seen::ready &&
            (total > most || total + records_->SumAt(i) != records_->At(i).GetValue(grant_sum))) {
            seen = Seen::impossible;
            value = total;
        }
        if (seen == Seen::impossible)
            verdict = control_->Corruption(EXCHANGE_REGION_GRANTS, i, value);
        return seen;
    }
    // The first rank whose rows do not fit its window.
    __aicore__ inline Verdict JudgeTotals() {
        const uint64_t capacity = part_.Capacity(control_->layout());
        records_->FoldToRecord();
        Order<HardEvent::V_S>();
        const uint64_t greatest = records_->Greatest().Get<uint64_t>().GetValue(grant_total);
        const uint64_t least = records_->Smallest().Get<uint64_t>().GetValue(grant_total);
        // Halves were compared as numbers with a sign: only of what has none is the greatest the greatest.
        if (greatest <= capacity && (greatest | least) <= most_lane)
            return control_->Fault(EXCHANGE_OK, 0);
        for (uint32_t owner = 0; owner < control_->ranks(); ++owner) {
            const uint64_t total = records_->At(owner).GetValue(grant_total);
            // @protocol joint-fit
            if (total > capacity)
                return control_->Fault(EXCHANGE_WINDOW_TOO_SMALL, owner, 0, static_cast<int64_t>(total));
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }

    static constexpr uint64_t most_lane = 0x7fffffff;

    Control *control_ = nullptr;
    Records *records_ = nullptr;
    Counts *counts_ = nullptr;
    const DispatchArguments *arguments_ = nullptr;
    uint32_t local_experts_ = 1;
    uint32_t record_ = 1; // units of one
    Part part_ = {};
    Verdict misplaced_ = {};
    TBuf<TPosition::VECCALC> begins_;
};

} // namespace ascend_kernels
