// What ranks tell each other about their rows, and where each row goes if every rank has the counts of all.
#pragma once

#include "own_pairs.h"
#include "records.h"

namespace ascend_kernels {

class Counts {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, Records &records, const DispatchArguments &arguments) {
        control_ = &control;
        records_ = &records;
        arguments_ = &arguments;
        const ExchangeLayout &layout = control.layout();
        local_experts_ = layout.experts / control.ranks();
        units_ = layout.count_units;
        record_ = 1 + units_;
        served_ = layout.granting != 0 ? ServedOf(control.core(), control.cores(), control.ranks())
                                       : Served{control.rank(), control.rank() + 1};
        pipe.InitBuffer(pushed_, PushedBytes(layout, control.cores()));
        pipe.InitBuffer(header_, EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(sums_, RecordBytes(layout));
        pipe.InitBuffer(before_, MostServed(layout, control.cores()) * RecordBytes(layout));
        pipe.InitBuffer(starts_, (control.ranks() + 1) * sizeof(uint32_t));
        pipe.InitBuffer(totals_, local_experts_ * sizeof(int64_t));
    }

    // Tells every rank how many rows this one has for the experts of all, or granting for those of that rank, or only
    // what is wrong with the input.
    __aicore__ inline void Push(OwnPairs &pairs, const Verdict &input, uint64_t word) {
        if (input.result != EXCHANGE_OK)
            PushRefusal(input, word);
        else if (control_->layout().granting != 0)
            PushToServed(pairs, word);
        else
            PushToAll(pairs, word);
    }

    // Waits for the records of all sources and adds them up. Every core does; what one finds that the others do not see
    // comes together after the rows.
    __aicore__ inline Verdict WaitForRecords() {
        Duplicate(sums_.Get<int32_t>(), 0, RecordLanes());
        Verdict merged = control_->Fault(EXCHANGE_OK, 0);
        control_->BeginWait();
        for (uint32_t first = 0; first < control_->ranks() && !Poisons(merged.result); first += records_->AtOnce()) {
            const Verdict verdict = records_->Wait(
                Record(0), first, [this](uint32_t i) __aicore__ { return HasWellHeader(i); },
                [this](uint32_t i, Verdict &judged) __aicore__ { return JudgeRecord(i, judged); });
            if (Severity(verdict.result) > Severity(merged.result))
                merged = verdict;
            if (merged.result == EXCHANGE_OK)
                merged = AddThese();
        }
        return merged;
    }

    // What follows from the counts of all: where the rows of each destination begin among all, and what arrives at this
    // rank. Every core of every rank comes to the same decision about what fits.
    __aicore__ inline Verdict DeriveOffsets(Part part, uint64_t &total) {
        part_ = part;
        AddUnits();
        const auto starts = starts_.Get<uint32_t>();
        uint32_t start = 0;
        for (uint32_t destination = 0; destination < control_->ranks(); ++destination) {
            starts.SetValue(destination, start);
            const bool is_last = destination + 1 == control_->ranks();
            const uint32_t end = is_last ? Announced() : SumBefore((destination + 1) * local_experts_);
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
        StoreMatrix();
        const auto totals = totals_.Get<int64_t>();
        const uint32_t first = control_->core() * totals_of_core;
        for (uint32_t begin = first; begin < local_experts_; begin += control_->cores() * totals_of_core) {
            const uint32_t number = Least(totals_of_core, local_experts_ - begin);
            for (uint32_t i = 0; i < number; ++i)
                totals.SetValue(begin + i, OwnCount(begin + i));
            Order<HardEvent::S_MTE3>();
            Store(Global<int64_t>(arguments_->counts + begin * sizeof(int64_t)), totals[begin], number);
        }
    }

    // The row of the pair of this rank that has `index` earlier ones of the same expert, in the expert's window.
    __aicore__ inline uint32_t RowOf(uint32_t expert, uint32_t index) {
        const uint32_t start = starts_.Get<uint32_t>().GetValue(RankOf(expert));
        return static_cast<uint32_t>(part_.FirstRow(control_->layout())) + SumBefore(expert) - start +
               Number(before_, expert) + index;
    }
    __aicore__ inline uint32_t RankOf(uint32_t expert) const { return expert / local_experts_; }

    // Rows that arrive for an expert of this rank.
    __aicore__ inline uint32_t OwnCount(uint32_t local) {
        return Number(sums_, control_->layout().granting != 0 ? local : control_->rank() * local_experts_ + local);
    }
    // The ranks that this core grants places, and of each, as a record, the counts of all ranks before it.
    __aicore__ inline const Served &ServedRanks() const { return served_; }
    __aicore__ inline TBuf<TPosition::VECCALC> &Before() { return before_; }

  private:
    // Whole lines of them, so that no two cores share one; units of the unified buffer as well.
    static constexpr uint32_t totals_of_core = EXCHANGE_LINE_BYTES / sizeof(int64_t);

    // The core that has the fewest count units.
    __aicore__ inline bool PushesHeader() const { return control_->core() + 1 == control_->cores(); }
    // Where the record of `source` lies in any window.
    __aicore__ inline uint64_t Record(uint32_t source) const {
        // @protocol record-parity
        const ExchangeLayout &layout = control_->layout();
        return layout.records + ((control_->epoch & 1) * control_->ranks() + source) * RecordBytes(layout);
    }
    __aicore__ inline int32_t RecordLanes() const { return static_cast<int32_t>(record_ * unit_halves); }

    __aicore__ inline void FillHeader(const LocalTensor<uint64_t> &words, uint64_t word, uint32_t error,
                                      uint64_t detail) {
        words.SetValue(0, word);
        words.SetValue(header_tokens_error, uint64_t(error) << 32 | arguments_->tokens);
        words.SetValue(header_detail, detail);
        words.SetValue(header_block, 0);
    }
    __aicore__ inline void PushRefusal(const Verdict &input, uint64_t word) {
        if (!PushesHeader())
            return;
        FillHeader(header_.Get<uint64_t>(), word, input.cause, static_cast<uint64_t>(input.detail));
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 1; i <= control_->ranks(); ++i)
            PushHeader(control_->Rotated(i));
    }
    __aicore__ inline void PushHeader(uint32_t peer) {
        // @protocol push-header
        Store(Global<uint64_t>(control_->Window(peer) + Record(control_->rank())), header_.Get<uint64_t>(), unit_words);
    }
    // One record for all, of whose count units core, core + cores, ... are this core's; the last core has the header.
    __aicore__ inline void PushToAll(OwnPairs &pairs, uint64_t word) {
        const auto words = pushed_.Get<uint64_t>();
        uint32_t slot = 0;
        for (uint32_t unit = control_->core(); unit < units_; unit += control_->cores(), ++slot) {
            const uint32_t first = unit * EXCHANGE_COUNTS_PER_UNIT;
            words.SetValue(slot * unit_words, word);
            pairs.CountUnit(first, Least(EXCHANGE_COUNTS_PER_UNIT, control_->layout().experts - first),
                            pushed_.Get<uint32_t>()[slot * unit_halves + 2]);
        }
        if (PushesHeader())
            FillHeader(header_.Get<uint64_t>(), word, EXCHANGE_INPUT_OK, pairs.CountRouted());
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 1; i <= control_->ranks(); ++i) {
            const uint32_t peer = control_->Rotated(i);
            if (PushesHeader())
                PushHeader(peer);
            const uint64_t units = control_->Window(peer) + Record(control_->rank()) + EXCHANGE_UNIT_BYTES;
            slot = 0;
            for (uint32_t unit = control_->core(); unit < units_; unit += control_->cores(), ++slot)
                // @protocol push-counts. Each unit is stored whole and carries its word: nothing has to come before it.
                Store(Global<uint64_t>(units + unit * EXCHANGE_UNIT_BYTES), words[slot * unit_words], unit_words);
        }
    }
    // To each rank that this core serves a record of its own.
    __aicore__ inline void PushToServed(OwnPairs &pairs, uint64_t word) {
        for (uint32_t i = 0; i < served_.Number(); ++i) {
            const auto words = pushed_.Get<uint64_t>()[i * record_ * unit_words];
            const auto halves = pushed_.Get<uint32_t>()[i * record_ * unit_halves];
            const uint32_t first = (served_.begin + i) * local_experts_;
            uint64_t routed = 0;
            for (uint32_t unit = 0; unit < units_; ++unit) {
                const uint32_t counted = unit * EXCHANGE_COUNTS_PER_UNIT;
                words.SetValue((1 + unit) * unit_words, word);
                pairs.CountUnit(first + counted, Least(EXCHANGE_COUNTS_PER_UNIT, local_experts_ - counted),
                                halves[(1 + unit) * unit_halves + 2]);
                routed += SumOfUnit(words, 1 + unit);
            }
            FillHeader(words, word, EXCHANGE_INPUT_OK, routed);
        }
        Order<HardEvent::S_MTE3>();
        for (uint32_t i = 0; i < served_.Number(); ++i) {
            const uint32_t peer = served_.Rotated(control_->rank(), i);
            // @protocol push-header
            // @protocol push-counts. As above.
            Store(Global<uint64_t>(control_->Window(peer) + Record(control_->rank())),
                  pushed_.Get<uint64_t>()[(peer - served_.begin) * record_ * unit_words], record_ * unit_words);
        }
    }

    __aicore__ inline bool HasWellHeader(uint32_t i) {
        const window_words::Header header = HeaderOf(records_->At(i));
        uint64_t value;
        return header.error == EXCHANGE_INPUT_OK && window_words::header_is_possible(control_->layout(), header, value);
    }
    // A record that is there, refused or impossible says so in `verdict`.
    __aicore__ inline Seen JudgeRecord(uint32_t i, Verdict &verdict) {
        const auto words = records_->At(i);
        const uint32_t source = records_->First() + i;
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
        const Seen units = JudgeUnits(i, value);
        if (units == Seen::impossible)
            verdict = control_->Corruption(EXCHANGE_REGION_RECORDS, source, value);
        return units;
    }
    // Count units that are impossible: their word or their sum is in `value`.
    __aicore__ inline Seen JudgeUnits(uint32_t i, uint64_t &value) {
        if (const Seen seen = records_->JudgeWords(i, value); seen != Seen::ready)
            return seen;
        value = records_->SumAt(i);
        return value == records_->At(i).GetValue(header_detail) ? Seen::ready : Seen::impossible;
    }

    // Adds what is at hand to the sums, and keeps what they are before each rank that is served. What they are together
    // has to be what the headers say.
    __aicore__ inline Verdict AddThese() {
        const uint32_t first = records_->First(), end = first + records_->Number();
        uint32_t added = first;
        Order<HardEvent::S_V>();
        for (uint32_t source = Most(first, served_.begin); source < Least(end, served_.end); ++source) {
            AddRecords(added - first, source - first);
            added = source;
            PipeBarrier<PIPE_V>();
            Adds(before_.Get<int32_t>()[(source - served_.begin) * RecordLanes()], sums_.Get<int32_t>(), 0,
                 RecordLanes());
        }
        AddRecords(added - first, end - first);
        if (const uint32_t sum = SumOfUnits(); sum == Announced())
            return control_->Fault(EXCHANGE_OK, 0);
        for (uint32_t i = 0; i < records_->Number(); ++i) {
            uint64_t value;
            if (JudgeUnits(i, value) != Seen::ready)
                return control_->Corruption(EXCHANGE_REGION_RECORDS, first + i, value);
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }
    // Records [begin, end) of those at hand, with their headers.
    __aicore__ inline void AddRecords(uint32_t begin, uint32_t end) {
        const auto sums = sums_.Get<int32_t>(), folded = records_->Greatest().Get<int32_t>();
        if (begin == end)
            return;
        auto from = records_->LanesAt(begin);
        const uint32_t number = end - begin, lanes = record_ * unit_halves;
        if (number > 1) {
            uint32_t count = Least(records_->Strip(), (number + 1) / 2);
            PipeBarrier<PIPE_V>();
            Adds(folded, from, 0, static_cast<int32_t>(count * lanes));
            for (uint32_t first = count; first < number; first += count) {
                PipeBarrier<PIPE_V>();
                Add(folded, folded, from[first * lanes], static_cast<int32_t>(Least(count, number - first) * lanes));
            }
            while (count > 1) {
                const uint32_t half = (count + 1) / 2;
                PipeBarrier<PIPE_V>();
                Add(folded, folded, folded[half * lanes], static_cast<int32_t>((count - half) * lanes));
                count = half;
            }
            from = folded;
        }
        PipeBarrier<PIPE_V>();
        Add(sums, sums, from, RecordLanes());
    }
    // Rows of which the headers in the sums tell.
    __aicore__ inline uint32_t Announced() {
        return static_cast<uint32_t>(sums_.Get<uint64_t>().GetValue(header_detail));
    }
    // Of all counts in sums_.
    __aicore__ inline uint32_t SumOfUnits() {
        const auto sums = sums_.Get<int32_t>(), folded = records_->Greatest().Get<int32_t>();
        uint32_t count = units_;
        PipeBarrier<PIPE_V>();
        Adds(folded, sums[unit_halves], 0, static_cast<int32_t>(count * unit_halves));
        while (count > 1) {
            const uint32_t half = (count + 1) / 2;
            PipeBarrier<PIPE_V>();
            Add(folded, folded, folded[half * unit_halves], static_cast<int32_t>((count - half) * unit_halves));
            count = half;
        }
        Order<HardEvent::V_S>();
        const uint64_t sum = SumOfUnit(records_->Greatest().Get<uint64_t>(), 0);
        Order<HardEvent::S_V>();
        return static_cast<uint32_t>(sum);
    }
    // Earlier() = by number of a unit, the sum over the count units before it.
    __aicore__ inline void AddUnits() {
        const auto units = sums_.Get<int32_t>()[unit_halves];
        auto from = records_->Greatest().Get<int32_t>(), to = records_->Smallest().Get<int32_t>();
        const auto all = static_cast<int32_t>(units_ * unit_halves), one = static_cast<int32_t>(unit_halves);
        PipeBarrier<PIPE_V>();
        Duplicate(from, 0, one);
        if (units_ > 1)
            Adds(from[unit_halves], units, 0, all - one);
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
        const auto earlier = (is_shifted_ ? records_->Smallest() : records_->Greatest()).Get<uint64_t>();
        const auto sums = sums_.Get<uint64_t>();
        uint64_t sum = 0;
        for (uint32_t pair = 0; pair < EXCHANGE_COUNTS_PER_UNIT / 2; ++pair) {
            sum += Both(earlier.GetValue(unit * unit_words + 1 + pair));
            if (lane > 2 * pair) {
                const uint64_t counts = sums.GetValue((1 + unit) * unit_words + 1 + pair);
                sum += lane > 2 * pair + 1 ? Both(counts) : counts & 0xffffffff;
            }
        }
        return static_cast<uint32_t>(sum);
    }
    // In a record, of the `index`-th expert that it counts.
    __aicore__ inline uint32_t Number(TBuf<TPosition::VECCALC> &record, uint32_t index) {
        return record.Get<uint32_t>().GetValue(LaneOf(index));
    }

    // Picks the counts out of the units by the stride of the copies, in the place of what was pushed. Records do not
    // change any more.
    __aicore__ inline void StoreMatrix() {
        const uint32_t ranks = control_->ranks();
        if (units_ == 1) {
            const Served sources = ServedOf(control_->core(), control_->cores(), ranks);
            StoreMatrixRows(sources.begin, sources.Number());
            return;
        }
        for (uint32_t source = control_->core(); source < ranks; source += control_->cores())
            StoreMatrixRow(source);
    }
    // Of ranks with one count unit each.
    __aicore__ inline void StoreMatrixRows(uint32_t first, uint32_t number) {
        if (number == 0)
            return;
        const uint32_t row_bytes = control_->layout().counted * sizeof(uint32_t);
        const auto units = pushed_.Get<uint32_t>();
        Order<HardEvent::MTE3_MTE2>();
        DataCopyPad(units, Payload(first),
                    DataCopyExtParams{static_cast<uint16_t>(number), row_bytes,
                                      record_ * EXCHANGE_UNIT_BYTES - row_bytes, 0, 0},
                    DataCopyPadExtParams<uint32_t>{false, 0, 0, 0});
        Order<HardEvent::MTE2_MTE3>();
        DataCopyPad(MatrixRow(first), units, DataCopyExtParams{static_cast<uint16_t>(number), row_bytes, 0, 0, 0});
    }
    __aicore__ inline void StoreMatrixRow(uint32_t source) {
        constexpr uint32_t word_bytes = sizeof(uint64_t), payload = EXCHANGE_UNIT_BYTES - word_bytes;
        const auto units = pushed_.Get<uint32_t>();
        const uint32_t counted = control_->layout().counted;
        const uint32_t whole = counted / EXCHANGE_COUNTS_PER_UNIT, rest = counted % EXCHANGE_COUNTS_PER_UNIT;
        const auto row = MatrixRow(source);
        Order<HardEvent::MTE3_MTE2>();
        DataCopyPad(units, Payload(source), DataCopyExtParams{static_cast<uint16_t>(units_), payload, word_bytes, 0, 0},
                    DataCopyPadExtParams<uint32_t>{false, 0, 0, 0});
        Order<HardEvent::MTE2_MTE3>();
        if (whole > 0)
            DataCopyPad(row, units, DataCopyExtParams{static_cast<uint16_t>(whole), payload, 0, 0, 0});
        if (rest > 0)
            Store(row[whole * EXCHANGE_COUNTS_PER_UNIT], units[whole * unit_halves], rest);
    }
    // The counts of the first count unit of `source`, in the own window.
    __aicore__ inline GlobalTensor<uint32_t> Payload(uint32_t source) {
        return Global<uint32_t>(control_->Own(Record(source)) + EXCHANGE_UNIT_BYTES + sizeof(uint64_t));
    }
    __aicore__ inline GlobalTensor<uint32_t> MatrixRow(uint32_t source) {
        return Global<uint32_t>(arguments_->matrix + uint64_t(source) * control_->layout().counted * sizeof(uint32_t));
    }

    Control *control_ = nullptr;
    Records *records_ = nullptr;
    const DispatchArguments *arguments_ = nullptr;
    uint32_t local_experts_ = 1;
    uint32_t units_ = 0;
    uint32_t record_ = 1; // units of a record
    Served served_ = {};
    bool is_shifted_ = false;
    Part part_ = {};
    TBuf<TPosition::VECCALC> pushed_, header_, sums_, before_, starts_, totals_;
};

} // namespace ascend_kernels
