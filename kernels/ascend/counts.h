// The records of counts that ranks push, and where each row goes.
//
// In the unified buffer counts lie as in a record: a count unit of 32 bytes is its sequence word and six counts, so
// that a unit is a block of the vector unit and records are added and compared without being unpacked.
#pragma once

#include "control.h"
#include "own_pairs.h"

namespace ascend_kernels {

class Counts {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, const DispatchArguments &arguments) {
        control_ = &control;
        arguments_ = &arguments;
        const ExchangeLayout &layout = control.layout();
        experts_ = layout.experts;
        local_experts_ = experts_ / control.ranks();
        units_ = layout.count_units;
        at_once_ = RecordsAtOnce(layout);
        const uint32_t bytes = units_ * EXCHANGE_UNIT_BYTES;
        const uint32_t blocks = Most(units_, (at_once_ * (1 + units_) + 1) / 2);
        pipe.InitBuffer(pushed_, bytes);
        pipe.InitBuffer(header_, EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(records_, at_once_ * RecordBytes(layout));
        pipe.InitBuffer(sums_, bytes);
        pipe.InitBuffer(before_, bytes);
        pipe.InitBuffer(earlier_, blocks * EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(shifted_, blocks * EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(starts_, (control.ranks() + 1) * sizeof(uint32_t));
        pipe.InitBuffer(totals_, local_experts_ * sizeof(int64_t));
    }

    // Fills this core's count units of this rank's record, of which units core, core + cores, ... are its own, and on
    // the last core the header.
    __aicore__ inline void FillRecord(OwnPairs &pairs, uint64_t word) {
        const auto words = pushed_.Get<uint64_t>();
        uint32_t slot = 0;
        for (uint32_t unit = control_->core(); unit < units_; unit += control_->cores(), ++slot) {
            words.SetValue(slot * unit_words, word);
            pairs.CountUnit(unit * EXCHANGE_COUNTS_PER_UNIT, pushed_.Get<uint32_t>()[slot * unit_halves + 2]);
        }
        if (PushesHeader())
            header_.Get<uint64_t>().SetValue(header_detail, pairs.CountRouted());
    }
    // Pushes them to the windows of all ranks, or only a header that says what is wrong with the input.
    __aicore__ inline void PushRecord(const Verdict &input, uint64_t word) {
        const bool refused = input.result != EXCHANGE_OK;
        if (PushesHeader()) {
            const auto words = header_.Get<uint64_t>();
            const auto halves = header_.Get<uint32_t>();
            words.SetValue(0, word);
            halves.SetValue(2 * header_tokens_error, arguments_->tokens);
            halves.SetValue(2 * header_tokens_error + 1, input.cause);
            if (refused)
                words.SetValue(header_detail, static_cast<uint64_t>(input.detail));
            words.SetValue(header_block, 0);
        }
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 1; i <= control_->ranks(); ++i) {
            const uint64_t record = control_->Window(control_->Rotated(i)) + Record(control_->rank());
            if (PushesHeader())
                // @protocol push-header
                Store(Global<uint64_t>(record), header_.Get<uint64_t>(), unit_words);
            uint32_t slot = 0;
            for (uint32_t unit = control_->core(); unit < units_ && !refused; unit += control_->cores(), ++slot)
                // @protocol push-counts. Each unit is stored whole and carries its word: nothing has to come before it.
                Store(Global<uint64_t>(record + (1 + unit) * EXCHANGE_UNIT_BYTES),
                      pushed_.Get<uint64_t>()[slot * unit_words], unit_words);
        }
    }

    // Waits for the records of all sources and adds them up. Every core does; what one finds that the others do not see
    // comes together after the rows.
    __aicore__ inline Verdict WaitForRecords() {
        const auto sums = sums_.Get<int32_t>(), before = before_.Get<int32_t>();
        const auto lanes = static_cast<int32_t>(units_ * unit_halves);
        Duplicate(sums, 0, lanes);
        Duplicate(before, 0, lanes);
        Verdict merged = control_->Fault(EXCHANGE_OK, 0);
        control_->BeginWait();
        for (uint32_t first = 0; first < control_->ranks() && !Poisons(merged.result); first += at_once_) {
            number_ = Least(at_once_, control_->ranks() - first);
            first_ = first;
            const Verdict verdict = WaitForThese();
            if (Severity(verdict.result) > Severity(merged.result))
                merged = verdict;
            if (merged.result == EXCHANGE_OK)
                merged = AddThese();
        }
        return merged;
    }

    // What follows from the sums: where the rows of each destination begin among all, and what arrives at this rank.
    // Every core of every rank comes to the same decision about what fits.
    __aicore__ inline Verdict DeriveOffsets(Part part, uint64_t &total) {
        part_ = part;
        AddUnits();
        const auto starts = starts_.Get<uint32_t>();
        uint32_t start = 0;
        for (uint32_t destination = 0; destination < control_->ranks(); ++destination) {
            starts.SetValue(destination, start);
            const bool is_last = destination + 1 == control_->ranks();
            const uint32_t end =
                is_last ? static_cast<uint32_t>(routed_) : SumBefore((destination + 1) * local_experts_);
            const uint32_t arriving = end - start;
            // @protocol joint-fit
            if (arriving > part.Capacity(control_->layout()))
                return control_->Fault(EXCHANGE_WINDOW_TOO_SMALL, destination, 0, static_cast<int64_t>(arriving));
            if (destination == control_->rank())
                total = arriving;
            start = end;
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }

    // This core's part of what the host sees: rows of the matrix, and rows of local experts.
    __aicore__ inline void StoreCounts() {
        for (uint32_t source = control_->core(); source < control_->ranks(); source += control_->cores())
            StoreMatrixRow(source);
        const auto totals = totals_.Get<int64_t>();
        const uint32_t first = control_->core() * totals_of_core;
        for (uint32_t begin = first; begin < local_experts_; begin += control_->cores() * totals_of_core) {
            const uint32_t number = Least(totals_of_core, local_experts_ - begin);
            for (uint32_t i = 0; i < number; ++i)
                totals.SetValue(begin + i, Lane(sums_, control_->rank() * local_experts_ + begin + i));
            Order<HardEvent::S_MTE3>();
            Store(Global<int64_t>(arguments_->counts + begin * sizeof(int64_t)), totals[begin], number);
        }
    }

    // The row of the pair of this rank that has `index` earlier ones of the same expert, in the expert's window.
    __aicore__ inline uint32_t RowOf(uint32_t expert, uint32_t index) {
        const uint32_t start = starts_.Get<uint32_t>().GetValue(RankOf(expert));
        return static_cast<uint32_t>(part_.FirstRow(control_->layout())) + SumBefore(expert) - start +
               Lane(before_, expert) + index;
    }
    __aicore__ inline uint32_t RankOf(uint32_t expert) const { return expert / local_experts_; }

  private:
    static constexpr uint32_t unit_halves = EXCHANGE_UNIT_BYTES / sizeof(uint32_t);
    // Whole lines of them, so that no two cores share one; units of the unified buffer as well.
    static constexpr uint32_t totals_of_core = EXCHANGE_LINE_BYTES / sizeof(int64_t);
    static constexpr uint32_t served_words = 512 / sizeof(uint64_t);
    // Polls that only see whether everything is there, to one that looks at what is missing, at the time and at the
    // others.
    static constexpr uint32_t polls_between_looks = 8;

    // The core that has the fewest count units.
    __aicore__ inline bool PushesHeader() const { return control_->core() + 1 == control_->cores(); }
    // Where the record of `source` lies in any window.
    __aicore__ inline uint64_t Record(uint32_t source) const {
        // @protocol record-parity
        const ExchangeLayout &layout = control_->layout();
        return layout.records + ((control_->epoch & 1) * control_->ranks() + source) * RecordBytes(layout);
    }
    __aicore__ inline uint64_t Expected() const { return SequenceWord(control_->epoch, arguments_->kind); }
    // Record `i` of those at hand.
    __aicore__ inline LocalTensor<uint64_t> At(uint32_t i) {
        return records_.Get<uint64_t>()[i * (1 + units_) * unit_words];
    }

    // Waits until the records of sources first_ on, number_ of them, are at hand, or for what is wrong with one. All
    // headers are waited for before a refusal of one counts.
    __aicore__ inline Verdict WaitForThese() {
        for (uint32_t polls = 1;; ++polls) {
            LoadThese();
            if (AreThere())
                return control_->Fault(EXCHANGE_OK, 0);
            if (polls % polls_between_looks != 0)
                continue;
            control_->LookAround();
            LoadThese();
            Verdict merged = control_->Fault(EXCHANGE_OK, 0);
            uint32_t missing = control_->ranks();
            for (uint32_t i = number_; i-- > 0;) {
                Verdict verdict = control_->Fault(EXCHANGE_OK, 0);
                if (JudgeRecord(i, verdict) == Seen::pending)
                    missing = first_ + i;
                if (verdict.result != EXCHANGE_OK && Severity(verdict.result) >= Severity(merged.result))
                    merged = verdict;
            }
            if (Poisons(merged.result) || missing == control_->ranks())
                return merged;
            if (const Verdict verdict = control_->JudgeDelay(missing); verdict.result != EXCHANGE_OK)
                return verdict;
        }
    }
    __aicore__ inline void LoadWords(uint32_t begin, uint32_t end) {
        Load(records_.Get<uint64_t>()[begin],
             Global<uint64_t>(control_->Own(Record(first_)) + begin * sizeof(uint64_t)), end - begin);
    }
    // In two parts: memory serves cores slowly that ask for the same 512 bytes at a time.
    __aicore__ inline void LoadThese() {
        const uint32_t words = number_ * (1 + units_) * unit_words;
        const uint32_t middle = control_->core() * words / control_->cores() / served_words * served_words;
        Order<HardEvent::S_MTE2>();
        Order<HardEvent::V_MTE2>();
        LoadWords(middle, words);
        if (middle > 0)
            LoadWords(0, middle);
        Order<HardEvent::MTE2_S>();
    }
    // Whether every unit at hand has the word that is waited for: the greatest and the least are it.
    __aicore__ inline bool AreThere() {
        const uint32_t blocks = number_ * (1 + units_);
        const auto records = records_.Get<int32_t>(), greatest = earlier_.Get<int32_t>(),
                   least = shifted_.Get<int32_t>();
        uint32_t count = (blocks + 1) / 2;
        const auto other = records[(blocks - count) * unit_halves];
        Order<HardEvent::S_V>();
        PipeBarrier<PIPE_V>();
        Max(greatest, records, other, static_cast<int32_t>(count * unit_halves));
        Min(least, records, other, static_cast<int32_t>(count * unit_halves));
        while (count > 1) {
            const uint32_t half = (count + 1) / 2;
            const auto lanes = static_cast<int32_t>((count - half) * unit_halves);
            PipeBarrier<PIPE_V>();
            Max(greatest, greatest, greatest[half * unit_halves], lanes);
            Min(least, least, least[half * unit_halves], lanes);
            count = half;
        }
        Order<HardEvent::V_S>();
        // @protocol wait-headers. Each unit was loaded whole: with the word its payload is there.
        // @protocol wait-counts
        if (earlier_.Get<uint64_t>().GetValue(0) != Expected() || shifted_.Get<uint64_t>().GetValue(0) != Expected())
            return false;
        for (uint32_t i = 0; i < number_; ++i) {
            const window_words::Header header = HeaderOf(At(i));
            uint64_t value;
            if (header.error != EXCHANGE_INPUT_OK ||
                !window_words::header_is_possible(control_->layout(), header, value))
                return false;
        }
        return true;
    }
    // A record that is there, refused or impossible says so in `verdict`.
    __aicore__ inline Seen JudgeRecord(uint32_t i, Verdict &verdict) {
        const auto words = At(i);
        const uint32_t source = first_ + i;
        const uint64_t seen = EpochOf(words.GetValue(0));
        if (seen < control_->epoch)
            return Seen::pending;
        uint64_t value = words.GetValue(0);
        const window_words::Header header = HeaderOf(words);
        if (seen > control_->epoch || !window_words::header_is_possible(control_->layout(), header, value))
            verdict = control_->Corruption(EXCHANGE_REGION_RECORDS, source, value);
        else if (header.kind != arguments_->kind)
            verdict = control_->Fault(EXCHANGE_MISMATCH, source, header.kind, arguments_->kind);
        else if (header.error != EXCHANGE_INPUT_OK)
            verdict = control_->Fault(EXCHANGE_INVALID_INPUT, source, header.error, header.detail);
        if (verdict.result != EXCHANGE_OK)
            return Seen::ready;
        const Seen units = JudgeUnits(i, header, value);
        if (units == Seen::impossible)
            verdict = control_->Corruption(EXCHANGE_REGION_RECORDS, source, value);
        return units;
    }
    // Count units that are impossible: their word or their sum is in `value`.
    __aicore__ inline Seen JudgeUnits(uint32_t i, const window_words::Header &header, uint64_t &value) {
        const auto words = At(i);
        uint64_t sum = 0;
        for (uint32_t unit = 1; unit <= units_; ++unit) {
            value = words.GetValue(unit * unit_words);
            if (value != Expected())
                return SeenOf(value, Expected());
            for (uint32_t pair = 1; pair < unit_words; ++pair)
                sum += Both(words.GetValue(unit * unit_words + pair));
        }
        value = sum;
        return sum == static_cast<uint64_t>(header.detail) ? Seen::ready : Seen::impossible;
    }

    // Adds what is at hand to the sums. What they are together has to be what the headers say.
    __aicore__ inline Verdict AddThese() {
        const auto sums = sums_.Get<int32_t>(), before = before_.Get<int32_t>();
        const auto lanes = static_cast<int32_t>(units_ * unit_halves);
        for (uint32_t i = 0; i < number_; ++i) {
            const auto units = records_.Get<int32_t>()[(i * (1 + units_) + 1) * unit_halves];
            PipeBarrier<PIPE_V>();
            Add(sums, sums, units, lanes);
            if (first_ + i < control_->rank())
                Add(before, before, units, lanes);
            routed_ += At(i).GetValue(header_detail);
        }
        if (SumOfUnits() == static_cast<uint32_t>(routed_))
            return control_->Fault(EXCHANGE_OK, 0);
        for (uint32_t i = 0; i < number_; ++i) {
            uint64_t value;
            if (JudgeUnits(i, HeaderOf(At(i)), value) != Seen::ready)
                return control_->Corruption(EXCHANGE_REGION_RECORDS, first_ + i, value);
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }
    // Of all counts in sums_.
    __aicore__ inline uint32_t SumOfUnits() {
        const auto sums = sums_.Get<int32_t>(), folded = earlier_.Get<int32_t>();
        uint32_t count = units_;
        Order<HardEvent::S_V>();
        PipeBarrier<PIPE_V>();
        Adds(folded, sums, 0, static_cast<int32_t>(count * unit_halves));
        while (count > 1) {
            const uint32_t half = (count + 1) / 2;
            PipeBarrier<PIPE_V>();
            Add(folded, folded, folded[half * unit_halves], static_cast<int32_t>((count - half) * unit_halves));
            count = half;
        }
        Order<HardEvent::V_S>();
        uint64_t sum = 0;
        for (uint32_t pair = 1; pair < unit_words; ++pair)
            sum += Both(earlier_.Get<uint64_t>().GetValue(pair));
        Order<HardEvent::S_V>();
        return static_cast<uint32_t>(sum);
    }
    // earlier_ = by count of a unit, the sum over the units before it.
    __aicore__ inline void AddUnits() {
        const auto sums = sums_.Get<int32_t>();
        auto from = earlier_.Get<int32_t>(), to = shifted_.Get<int32_t>();
        const auto all = static_cast<int32_t>(units_ * unit_halves), one = static_cast<int32_t>(unit_halves);
        PipeBarrier<PIPE_V>();
        Duplicate(from, 0, one);
        if (units_ > 1)
            Adds(from[unit_halves], sums, 0, all - one);
        is_shifted_ = false;
        for (uint32_t step = 1; step < units_; step *= 2) {
            const auto moved = static_cast<int32_t>(step * unit_halves);
            PipeBarrier<PIPE_V>();
            Adds(to, from, 0, moved);
            Add(to[step * unit_halves], from[step * unit_halves], from, all - moved);
            const auto next = from;
            from = to;
            to = next;
            is_shifted_ = !is_shifted_;
        }
        Order<HardEvent::V_S>();
    }
    // Rows of all experts before `expert`.
    __aicore__ inline uint32_t SumBefore(uint32_t expert) {
        const uint32_t unit = expert / EXCHANGE_COUNTS_PER_UNIT, lane = expert % EXCHANGE_COUNTS_PER_UNIT;
        const auto earlier = is_shifted_ ? shifted_.Get<uint64_t>() : earlier_.Get<uint64_t>();
        const auto sums = sums_.Get<uint64_t>();
        uint64_t sum = 0;
        for (uint32_t pair = 0; pair < EXCHANGE_COUNTS_PER_UNIT / 2; ++pair) {
            sum += Both(earlier.GetValue(unit * unit_words + 1 + pair));
            if (lane > 2 * pair) {
                const uint64_t counts = sums.GetValue(unit * unit_words + 1 + pair);
                sum += lane > 2 * pair + 1 ? Both(counts) : counts & 0xffffffff;
            }
        }
        return static_cast<uint32_t>(sum);
    }
    __aicore__ inline static uint64_t Both(uint64_t counts) { return (counts & 0xffffffff) + (counts >> 32); }
    __aicore__ inline uint32_t Lane(TBuf<TPosition::VECCALC> &units, uint32_t expert) {
        return units.Get<uint32_t>().GetValue(expert / EXCHANGE_COUNTS_PER_UNIT * unit_halves + 2 +
                                              expert % EXCHANGE_COUNTS_PER_UNIT);
    }

    // Picks the counts out of the units by the stride of the copies, in the place of what was pushed. The record does
    // not change any more.
    __aicore__ inline void StoreMatrixRow(uint32_t source) {
        constexpr uint32_t word_bytes = sizeof(uint64_t), payload = EXCHANGE_UNIT_BYTES - word_bytes;
        const auto units = pushed_.Get<uint32_t>();
        const uint32_t whole = experts_ / EXCHANGE_COUNTS_PER_UNIT, rest = experts_ % EXCHANGE_COUNTS_PER_UNIT;
        const auto row = Global<uint32_t>(arguments_->matrix + uint64_t(source) * experts_ * sizeof(uint32_t));
        Order<HardEvent::MTE3_MTE2>();
        DataCopyPad(units, Global<uint32_t>(control_->Own(Record(source)) + EXCHANGE_UNIT_BYTES + word_bytes),
                    DataCopyExtParams{static_cast<uint16_t>(units_), payload, word_bytes, 0, 0},
                    DataCopyPadExtParams<uint32_t>{false, 0, 0, 0});
        Order<HardEvent::MTE2_MTE3>();
        if (whole > 0)
            DataCopyPad(row, units, DataCopyExtParams{static_cast<uint16_t>(whole), payload, 0, 0, 0});
        if (rest > 0)
            Store(row[whole * EXCHANGE_COUNTS_PER_UNIT], units[whole * unit_halves], rest);
    }

    Control *control_ = nullptr;
    const DispatchArguments *arguments_ = nullptr;
    uint32_t experts_ = 0;
    uint32_t local_experts_ = 1;
    uint32_t units_ = 0;
    uint32_t at_once_ = 1;
    uint32_t first_ = 0;
    uint32_t number_ = 0;
    uint64_t routed_ = 0;
    bool is_shifted_ = false;
    Part part_ = {};
    TBuf<TPosition::VECCALC> pushed_, header_, records_, sums_, before_, earlier_, shifted_, starts_, totals_;
};

} // namespace ascend_kernels
