// Histograms, the matrix of counts, and where each row goes.
#pragma once

#include "control.h"
#include "routing.h"

namespace ascend_kernels {

class Counts {
  public:
    __aicore__ inline void Init(TPipe &pipe, Control &control, const DispatchArguments &arguments) {
        control_ = &control;
        arguments_ = &arguments;
        experts_ = control.layout().experts;
        local_experts_ = experts_ / control.ranks();
        const uint32_t bytes = experts_ * sizeof(int32_t);
        pipe.InitBuffer(own_, bytes);
        pipe.InitBuffer(before_, bytes);
        pipe.InitBuffer(sums_, bytes);
        pipe.InitBuffer(next_, bytes);
        pipe.InitBuffer(loads_, 2, bytes);
        pipe.InitBuffer(record_, RecordBytes());
        pipe.InitBuffer(units_, control.layout().count_units * EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(totals_, local_experts_ * sizeof(int64_t));
    }

    // Counts the ids of the tokens that begin in this core's share, -1 skipped. Returns what is wrong with the first
    // bad id.
    __aicore__ inline Verdict CountPairs(Routing &routing) {
        const auto counts = own_.Get<int32_t>();
        Duplicate(counts, 0, static_cast<int32_t>(experts_));
        Order<HardEvent::V_S>();
        for (uint64_t token = routing.FirstCounted(); token < routing.End();) {
            const Piece piece = routing.LoadPiece(token);
            for (uint32_t pair = 0; pair < piece.pairs; ++pair) {
                const int64_t id = routing.Id(pair);
                if (id < -1 || id >= experts_)
                    return control_->Fault(EXCHANGE_INVALID_INPUT, control_->rank(), EXCHANGE_INPUT_EXPERT_ID, id);
                if (id < 0)
                    continue;
                if (control_->layout().distinct_topk != 0 && routing.IsRepeated(pair, id))
                    return control_->Fault(EXCHANGE_INVALID_INPUT, control_->rank(), EXCHANGE_INPUT_REPEATED_EXPERT,
                                           id);
                counts.SetValue(static_cast<uint32_t>(id), counts.GetValue(static_cast<uint32_t>(id)) + 1);
            }
            token = piece.end;
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }
    __aicore__ inline void StoreHistogram() {
        Order<HardEvent::S_MTE3>();
        Store(Global<int32_t>(Histogram(control_->core())), own_.Get<int32_t>(), experts_);
    }

    // This rank's counts, and of them what the cores before this one bring.
    __aicore__ inline void AddHistograms() {
        SumRows(Histogram(0), HistogramBytes(control_->layout()), control_->cores(), control_->core());
        // own_ keeps what lies before this core's rows among those of this rank.
        Order<HardEvent::MTE3_V>();
        CopyCounts(own_, before_);
    }

    // Pushes the record of this rank, in one piece, to the windows of every cores-th rank.
    __aicore__ inline void PushRecord(const Verdict &input) {
        const auto words = record_.Get<uint64_t>();
        const auto halves = record_.Get<uint32_t>();
        const bool refused = input.result != EXCHANGE_OK;
        const uint64_t word = SequenceWord(control_->epoch, arguments_->kind);
        words.SetValue(0, word);
        halves.SetValue(2 * header_tokens_error, arguments_->tokens);
        halves.SetValue(2 * header_tokens_error + 1, input.cause);
        words.SetValue(header_detail, refused ? static_cast<uint64_t>(input.detail) : FillCountUnits(word));
        words.SetValue(header_block, 0);
        Order<HardEvent::S_MTE3>();
        const uint64_t offset = Record(control_->rank());
        for (uint32_t peer = control_->core(); peer < control_->ranks(); peer += control_->cores())
            // @protocol push-header
            // @protocol push-counts. Each unit is stored whole and carries its word: nothing has to come before it.
            Store(Global<uint64_t>(control_->Window(peer) + offset), words,
                  refused ? unit_words : RecordBytes() / static_cast<uint32_t>(sizeof(uint64_t)));
        Order<HardEvent::MTE3_S>();
    }

    // Waits for the records of every cores-th source and copies their counts into the matrix.
    __aicore__ inline Verdict WaitForRecords() {
        Verdict merged = control_->Fault(EXCHANGE_OK, 0);
        control_->BeginWait();
        for (uint32_t source = control_->core(); source < control_->ranks(); source += control_->cores()) {
            Verdict verdict = WaitForRecord(source);
            if (verdict.result == EXCHANGE_OK)
                StoreMatrixRow(source);
            if (Severity(verdict.result) > Severity(merged.result))
                merged = verdict;
            if (Poisons(merged.result))
                break;
        }
        return merged;
    }

    // Turns the matrix into the next row of each expert for this core, and tells what arrives at this rank. Every core
    // of every rank comes to the same decision about what fits.
    __aicore__ inline Verdict DeriveOffsets(Part part, uint64_t &total) {
        const uint64_t first_row = part.FirstRow(control_->layout());
        SumRows(arguments_->matrix, experts_ * sizeof(int32_t), control_->ranks(), control_->rank());
        Order<HardEvent::V_S>();
        const auto own = own_.Get<int32_t>(), before = before_.Get<int32_t>(), sums = sums_.Get<int32_t>();
        const auto next = next_.Get<int32_t>();
        for (uint32_t destination = 0; destination < control_->ranks(); ++destination) {
            uint64_t row = first_row;
            for (uint32_t local = 0; local < local_experts_; ++local) {
                const uint32_t expert = destination * local_experts_ + local;
                next.SetValue(expert, static_cast<int32_t>(row) + before.GetValue(expert) + own.GetValue(expert));
                row += static_cast<uint32_t>(sums.GetValue(expert));
                if (destination == control_->rank())
                    totals_.Get<int64_t>().SetValue(local, sums.GetValue(expert));
            }
            const uint64_t arriving = row - first_row;
            // @protocol joint-fit
            if (arriving > part.Capacity(control_->layout()))
                return control_->Fault(EXCHANGE_WINDOW_TOO_SMALL, destination, 0, static_cast<int64_t>(arriving));
            if (destination == control_->rank())
                total = arriving;
        }
        return control_->Fault(EXCHANGE_OK, 0);
    }
    __aicore__ inline void StoreTotals() {
        Order<HardEvent::S_MTE3>();
        Store(Global<int64_t>(arguments_->counts), totals_.Get<int64_t>(), local_experts_);
    }

    // The row of the next pair of `expert`.
    __aicore__ inline uint32_t TakeRow(uint32_t expert) {
        const auto next = next_.Get<int32_t>();
        const int32_t row = next.GetValue(expert);
        next.SetValue(expert, row + 1);
        return static_cast<uint32_t>(row);
    }
    // Takes back that rows of `expert` were counted: the cores before this one counted a token of which it has a part.
    __aicore__ inline void ReturnRow(uint32_t expert) {
        next_.Get<int32_t>().SetValue(expert, next_.Get<int32_t>().GetValue(expert) - 1);
    }
    __aicore__ inline uint32_t RankOf(uint32_t expert) const { return expert / local_experts_; }

  private:
    __aicore__ inline uint32_t RecordBytes() const {
        return (1 + control_->layout().count_units) * EXCHANGE_UNIT_BYTES;
    }
    // Where the record of `source` lies in any window.
    __aicore__ inline uint64_t Record(uint32_t source) const {
        // @protocol record-parity
        return control_->layout().records + ((control_->epoch & 1) * control_->ranks() + source) * RecordBytes();
    }
    __aicore__ inline uint64_t Histogram(uint32_t core) const {
        return arguments_->common.workspace + HistogramOffset(control_->layout(), core, control_->cores());
    }

    // sums_ = all `rows` rows of experts_ counts, before_ = those before row `own`.
    __aicore__ inline void SumRows(uint64_t address, uint64_t pitch, uint32_t rows, uint32_t own) {
        const auto sums = sums_.Get<int32_t>();
        const auto count = static_cast<int32_t>(experts_);
        Order<HardEvent::S_V>();
        Duplicate(sums, 0, count);
        for (uint32_t row = 0; row < rows; ++row) {
            PipeBarrier<PIPE_V>();
            if (row == own) {
                CopyCounts(before_, sums_);
                PipeBarrier<PIPE_V>();
            }
            auto counts = loads_.AllocTensor<int32_t>();
            Load(counts, Global<int32_t>(address + row * pitch), experts_);
            loads_.EnQue(counts);
            counts = loads_.DeQue<int32_t>();
            Add(sums, sums, counts, count);
            loads_.FreeTensor(counts);
        }
        PipeBarrier<PIPE_V>();
    }
    __aicore__ inline void CopyCounts(TBuf<TPosition::VECCALC> &to, TBuf<TPosition::VECCALC> &from) {
        Adds(to.Get<int32_t>(), from.Get<int32_t>(), 0, static_cast<int32_t>(experts_));
    }

    // Returns the sum of the counts.
    __aicore__ inline uint64_t FillCountUnits(uint64_t word) {
        const auto words = record_.Get<uint64_t>();
        const auto halves = record_.Get<uint32_t>();
        const auto sums = sums_.Get<int32_t>();
        uint64_t sum = 0;
        Order<HardEvent::V_S>();
        for (uint32_t unit = 0; unit < control_->layout().count_units; ++unit) {
            const uint32_t begin = (1 + unit) * unit_words;
            words.SetValue(begin, word);
            for (uint32_t i = 0; i < EXCHANGE_COUNTS_PER_UNIT; ++i) {
                const uint32_t expert = unit * EXCHANGE_COUNTS_PER_UNIT + i;
                const uint32_t rows = expert < experts_ ? static_cast<uint32_t>(sums.GetValue(expert)) : 0;
                halves.SetValue(2 * begin + 2 + i, rows);
                sum += rows;
            }
        }
        return sum;
    }

    __aicore__ inline Verdict WaitForRecord(uint32_t source) {
        const auto words = record_.Get<uint64_t>();
        for (;;) {
            control_->LookAround();
            Order<HardEvent::S_MTE2>();
            Load(words, Global<uint64_t>(control_->Own(Record(source))),
                 RecordBytes() / static_cast<uint32_t>(sizeof(uint64_t)));
            Order<HardEvent::MTE2_S>();
            // @protocol wait-headers. The unit was loaded whole: with the word its payload is there.
            const uint64_t seen = EpochOf(words.GetValue(0));
            if (seen > control_->epoch)
                return control_->Corruption(EXCHANGE_REGION_RECORDS, source, words.GetValue(0));
            if (seen == control_->epoch) {
                const window_words::Header header = HeaderOf(words);
                uint64_t value;
                if (!window_words::header_is_possible(control_->layout(), header, value))
                    return control_->Corruption(EXCHANGE_REGION_RECORDS, source, value);
                if (header.kind != arguments_->kind)
                    return control_->Fault(EXCHANGE_MISMATCH, source, header.kind, arguments_->kind);
                if (header.error != EXCHANGE_INPUT_OK)
                    return control_->Fault(EXCHANGE_INVALID_INPUT, source, header.error, header.detail);
                const Seen counts = JudgeCountUnits(header, value);
                if (counts == Seen::impossible)
                    return control_->Corruption(EXCHANGE_REGION_RECORDS, source, value);
                if (counts == Seen::ready)
                    return control_->Fault(EXCHANGE_OK, 0);
            }
            if (const Verdict verdict = control_->JudgeDelay(source); verdict.result != EXCHANGE_OK)
                return verdict;
        }
    }
    // Counts that are impossible: their word or their sum is in `value`.
    __aicore__ inline Seen JudgeCountUnits(const window_words::Header &header, uint64_t &value) {
        const auto words = record_.Get<uint64_t>();
        uint64_t sum = 0;
        const uint64_t expected = SequenceWord(control_->epoch, arguments_->kind);
        for (uint32_t unit = 1; unit <= control_->layout().count_units; ++unit) {
            // @protocol wait-counts. As wait-headers, unit by unit.
            value = words.GetValue(unit * unit_words);
            if (value != expected)
                return SeenOf(value, expected);
            for (uint32_t pair = 1; pair < unit_words; ++pair) {
                const uint64_t counts = words.GetValue(unit * unit_words + pair);
                sum += (counts & 0xffffffff) + (counts >> 32);
            }
        }
        value = sum;
        return sum == static_cast<uint64_t>(header.detail) ? Seen::ready : Seen::impossible;
    }

    // Picks the counts out of the units by the stride of the copies. The record does not change any more.
    __aicore__ inline void StoreMatrixRow(uint32_t source) {
        constexpr uint32_t word_bytes = sizeof(uint64_t), payload = EXCHANGE_UNIT_BYTES - word_bytes;
        const auto units = units_.Get<uint32_t>();
        const uint32_t whole = experts_ / EXCHANGE_COUNTS_PER_UNIT, rest = experts_ % EXCHANGE_COUNTS_PER_UNIT;
        const auto row = Global<uint32_t>(arguments_->matrix + uint64_t(source) * experts_ * sizeof(uint32_t));
        Order<HardEvent::MTE3_MTE2>();
        DataCopyPad(units, Global<uint32_t>(control_->Own(Record(source)) + EXCHANGE_UNIT_BYTES + word_bytes),
                    DataCopyExtParams{static_cast<uint16_t>(control_->layout().count_units), payload, word_bytes, 0, 0},
                    DataCopyPadExtParams<uint32_t>{false, 0, 0, 0});
        Order<HardEvent::MTE2_MTE3>();
        if (whole > 0)
            DataCopyPad(row, units, DataCopyExtParams{static_cast<uint16_t>(whole), payload, 0, 0, 0});
        if (rest > 0)
            Store(row[whole * EXCHANGE_COUNTS_PER_UNIT], units[whole * (EXCHANGE_UNIT_BYTES / sizeof(uint32_t))], rest);
    }

    Control *control_ = nullptr;
    const DispatchArguments *arguments_ = nullptr;
    uint32_t experts_ = 0;
    uint32_t local_experts_ = 1;
    TBuf<TPosition::VECCALC> own_, before_, sums_, next_, record_, units_, totals_;
    TQue<TPosition::VECIN, 1> loads_;
};

} // namespace ascend_kernels
