// Words, verdicts and waits: what a kernel does besides moving rows. Everything goes through DMA and the unified
// buffer, so that no scalar cache can hold a stale word.
#pragma once

#include "order.h"
#include "step_clock.h"
#include "words.h"

namespace ascend_kernels {

constexpr uint32_t unit_words = EXCHANGE_UNIT_BYTES / sizeof(uint64_t);
constexpr uint32_t line_words = EXCHANGE_LINE_BYTES / sizeof(uint64_t);

class Control {
  public:
    __aicore__ inline void Init(TPipe &pipe, const KernelArguments &arguments) {
        arguments_ = &arguments;
        core_ = static_cast<uint32_t>(GetBlockIdx());
        cores_ = static_cast<uint32_t>(GetBlockNum());
        windows_ = Global<uint64_t>(arguments.windows);
        pipe.InitBuffer(unit_, sizeof(StepTimes));
        pipe.InitBuffer(words_, ranks() * EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(statuses_, ranks() * EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(verdicts_, cores_ * EXCHANGE_UNIT_BYTES);
    }

    __aicore__ inline const ExchangeLayout &layout() const { return arguments_->layout; }
    __aicore__ inline uint32_t ranks() const { return arguments_->layout.ranks; }
    __aicore__ inline uint32_t rank() const { return arguments_->rank; }
    __aicore__ inline uint32_t core() const { return core_; }
    __aicore__ inline uint32_t cores() const { return cores_; }
    // The table of windows does not change while a kernel runs: the scalar cache may hold it.
    __aicore__ inline uint64_t Window(uint32_t rank) const { return windows_.GetValue(rank); }
    __aicore__ inline uint64_t Own(uint64_t offset) const { return Window(rank()) + offset; }
    // The rank that is `i` after this one: where every rank begins with another, none is asked by all at once.
    __aicore__ inline uint32_t Rotated(uint32_t i) const { return (rank() + i) % ranks(); }
    __aicore__ inline uint64_t PartState(Part part) const {
        return Own(layout().state + (1 + part.Index()) * EXCHANGE_LINE_BYTES);
    }

    // Begins `next`, as faults and the times of steps name it.
    __aicore__ inline void BeginStep(uint32_t next) {
        step = next;
        TimeStep(next);
    }
    // The same for the times only.
    __aicore__ inline void TimeStep(uint32_t next) {
        if (is_timed_)
            clock_.Begin(next);
    }
    // Whether the times of this launch's steps are left, by this core.
    __aicore__ inline bool IsTimed() const { return is_timed_; }
    __aicore__ inline StepTimes &Times() { return clock_.times(); }

    // The two words at `address` in the own state; whether this rank has written both. The word that is behind their
    // seal is the host's, and says whether the steps of this exchange are timed.
    __aicore__ inline bool LoadState(uint64_t address, uint64_t &first, uint64_t &second) {
        const auto line = unit_.Get<uint64_t>();
        Order<HardEvent::S_MTE2>();
        Load(line, Global<uint64_t>(address), unit_words);
        Order<HardEvent::MTE2_S>();
        first = line.GetValue(0);
        second = line.GetValue(1);
        timed_ = line.GetValue(state_timed);
        is_timed_ = timed_ != 0 && core() == 0;
        return line.GetValue(2) == window_words::state_seal(first, second);
    }
    __aicore__ inline void StoreState(uint64_t address, uint64_t first, uint64_t second) {
        FillUnit(first, second, window_words::state_seal(first, second), timed_);
        Store(Global<uint64_t>(address), unit_.Get<uint64_t>(), unit_words);
        Order<HardEvent::MTE3_S>();
    }

    // Stores a unit of `word` and zeros.
    __aicore__ inline void StoreUnit(uint64_t address, uint64_t word) {
        FillUnit(word, 0, 0);
        Store(Global<uint64_t>(address), unit_.Get<uint64_t>(), unit_words);
    }
    // Stores `word`, and what explains it, at `offset` of every window. Everything that it announces has to be visible
    // before.
    __aicore__ inline void PushWord(uint64_t offset, uint64_t word, uint64_t second = 0, uint64_t third = 0) {
        PushWord(offset, 0, 1, word, second, third);
    }
    // The same to every `share`-th window from `first` on.
    __aicore__ inline void PushWord(uint64_t offset, uint32_t first, uint32_t share, uint64_t word, uint64_t second = 0,
                                    uint64_t third = 0) {
        FillUnit(word, second, third);
        for (uint32_t i = first; i < ranks(); i += share)
            Store(Global<uint64_t>(Window(Rotated(1 + i)) + offset), unit_.Get<uint64_t>(), unit_words);
        Order<HardEvent::MTE3_S>();
    }
    __aicore__ inline void PushStatus(const Verdict &verdict) {
        const bool explains = verdict.result == EXCHANGE_CORRUPTION;
        PushWord(layout().status + rank() * EXCHANGE_LINE_BYTES, StatusWord(verdict),
                 explains ? static_cast<uint64_t>(verdict.detail) : 0, verdict.region);
    }

    __aicore__ inline Verdict Fault(uint32_t result, uint32_t culprit, uint32_t cause = 0, int64_t detail = 0) const {
        Verdict verdict = {};
        verdict.result = result;
        verdict.culprit = culprit;
        verdict.step = step;
        verdict.cause = cause;
        verdict.epoch = epoch;
        verdict.detail = detail;
        return verdict;
    }
    // `value`, which `source` cannot have written into that region of a window.
    __aicore__ inline Verdict Corruption(uint32_t region, uint32_t source, uint64_t value) const {
        Verdict verdict = Fault(EXCHANGE_CORRUPTION, source, 0, static_cast<int64_t>(value));
        verdict.region = region;
        return verdict;
    }

    // What this core found in `stage`. Others may load it after a barrier of MTE3 and SyncAll; of what is well only
    // that.
    __aicore__ inline void StoreVerdict(uint32_t stage, const Verdict &verdict) {
        const uint64_t address = arguments_->workspace + VerdictOffset(stage, core(), cores());
        if (verdict.result != EXCHANGE_OK) {
            StoreLines(address, verdict);
            return;
        }
        Order<HardEvent::S_V>();
        Duplicate(unit_.Get<int32_t>(), static_cast<int32_t>(EXCHANGE_OK),
                  static_cast<int32_t>(EXCHANGE_UNIT_BYTES / sizeof(int32_t)));
        Order<HardEvent::V_MTE3>();
        Store(Global<uint64_t>(address), unit_.Get<uint64_t>(), unit_words);
        Order<HardEvent::MTE3_S>();
    }
    // What all cores together found in `stage`; the same on every core.
    __aicore__ inline Verdict MergeVerdicts(uint32_t stage) {
        LoadVerdicts(stage);
        if (IsWellEverywhere())
            return Fault(EXCHANGE_OK, 0);
        LoadVerdicts(stage);
        uint32_t worst = 0;
        for (uint32_t other = 1; other < cores(); ++other)
            if (Outweighs(Word(verdicts_, other), Word(verdicts_, worst)))
                worst = other;
        return LoadLine(arguments_->workspace + VerdictOffset(stage, worst, cores()));
    }
    // Tells core 0 that this core has ended, and with what: by `stamp`, which no earlier launch has left, or where it
    // found a fault by the complement. The core does nothing after it.
    __aicore__ inline void StoreEnd(uint64_t stamp, const Verdict &found) {
        if (found.result != EXCHANGE_OK)
            StoreVerdict(0, found);
        FillUnit(found.result == EXCHANGE_OK ? stamp : ~stamp, 0, 0);
        // What this core loads has been loaded, what it stores is visible before its word is.
        PipeBarrier<PIPE_ALL>();
        Store(Global<uint64_t>(arguments_->ends + core() * EXCHANGE_LINE_BYTES), unit_.Get<uint64_t>(), unit_words);
    }
    // On core 0, which found `found`: waits until the others have ended, and returns what all found together. A rank
    // one of whose cores does not end is at fault itself.
    __aicore__ inline Verdict WaitForEnds(uint64_t stamp, const Verdict &found) {
        Verdict worst = found;
        uint32_t other = 1;
        for (bool is_first = true, is_late = false;; is_first = false) {
            // A word is visible after all that its core did.
            LoadLines(verdicts_.Get<uint64_t>(), arguments_->ends, cores());
            for (; other < cores(); ++other) {
                const uint64_t word = Word(verdicts_, other);
                if (word == ~stamp)
                    worst = Worse(worst, LoadLine(arguments_->workspace + VerdictOffset(0, other, cores())));
                else if (word != stamp)
                    break;
            }
            if (other >= cores())
                return worst;
            if (is_late)
                return Worse(worst, Fault(EXCHANGE_PEER_TIMEOUT, rank()));
            // No wait for other ranks, as the clock counts them.
            if (is_first)
                wait_began_ = GetSystemCycle();
            else
                is_late = IsLate();
        }
    }
    // Ends the kernel: tells the host, and where the session is lost also every rank. One core does it.
    __aicore__ inline void Conclude(const Verdict &verdict) {
        if (is_timed_)
            StoreTimes();
        if (Poisons(verdict.result))
            PushStatus(verdict);
        StoreLines(arguments_->workspace, verdict);
        // What later launches find follows from the first.
        if (arguments_->fault != 0 && verdict.result != EXCHANGE_OK &&
            LoadLine(arguments_->fault).result == EXCHANGE_OK)
            StoreLines(arguments_->fault, verdict);
    }

    // A session that failed before is not used again. Times are not left either: in their place are those of the launch
    // that failed.
    __aicore__ inline Verdict RefusePoisoned() {
        LoadStatuses();
        const uint64_t own = Word(statuses_, rank());
        const bool is_own = own != 0 && StatusIsPossible(own, ranks());
        const Verdict refused =
            is_own ? Fault(EXCHANGE_POISONED, StatusCulprit(own), StatusResult(own)) : JudgeStatuses();
        is_timed_ = is_timed_ && refused.result == EXCHANGE_OK;
        return refused;
    }

    // Waits until judge(word) is Seen::ready for the word of every source in [begin, end) at `lines` of the own window,
    // in `region`; tells whether those of all sources are. The caller has begun the wait.
    template <class Judge>
    __aicore__ inline Verdict WaitForWords(ExchangeRegion region, uint64_t lines, uint32_t begin, uint32_t end,
                                           bool &are_all, Judge judge) {
        // Words that are there already need no look around.
        for (bool first = true;; first = false) {
            if (!first)
                LookAround();
            LoadLines(words_.Get<uint64_t>(), Own(lines), ranks());
            uint32_t missing = ranks();
            are_all = true;
            for (uint32_t source = ranks(); source-- > 0;) {
                const Seen seen = judge(Word(words_, source));
                if (seen == Seen::impossible)
                    return Corruption(region, source, Word(words_, source));
                are_all = are_all && seen == Seen::ready;
                if (seen == Seen::pending && source >= begin && source < end)
                    missing = source;
            }
            if (missing == ranks()) {
                EndWait();
                return Fault(EXCHANGE_OK, 0);
            }
            if (first) {
                if (is_timed_)
                    clock_.BeginWait();
                continue;
            }
            if (const Verdict verdict = JudgeDelay(missing); verdict.result != EXCHANGE_OK)
                return verdict;
        }
    }

    __aicore__ inline void BeginWait() {
        wait_began_ = GetSystemCycle();
        if (is_timed_)
            clock_.BeginWait();
    }
    // What was waited for is there.
    __aicore__ inline void EndWait() {
        if (is_timed_)
            clock_.EndWait();
    }
    // Time and statuses are looked at before words: what a peer did in time still counts.
    __aicore__ inline void LookAround() {
        expired_ = IsLate();
        LoadStatuses();
    }
    // Whether a wait for `missing` can still end well.
    __aicore__ inline Verdict JudgeDelay(uint32_t missing) {
        if (is_timed_)
            clock_.WaitFor(missing);
        if (const Verdict told = JudgeStatuses(); told.result != EXCHANGE_OK)
            return told;
        if (StatusResult(Word(statuses_, missing)) == EXCHANGE_PEER_CLOSED)
            return Fault(EXCHANGE_PEER_CLOSED, missing);
        // @protocol deadline. No wait is endless.
        if (expired_)
            return Fault(EXCHANGE_PEER_TIMEOUT, missing);
        return Fault(EXCHANGE_OK, 0);
    }

    uint32_t step = EXCHANGE_STEP_NONE;
    uint64_t epoch = 0;

  private:
    __aicore__ inline bool IsLate() const {
        return static_cast<uint64_t>(GetSystemCycle() - wait_began_) >= arguments_->timeout_cycles;
    }
    __aicore__ static inline Verdict Worse(const Verdict &one, const Verdict &other) {
        return Outweighs(GetWord(other, 0), GetWord(one, 0)) ? other : one;
    }
    __aicore__ inline void FillUnit(uint64_t first, uint64_t second, uint64_t third, uint64_t fourth = 0) {
        const auto unit = unit_.Get<uint64_t>();
        unit.SetValue(0, first);
        unit.SetValue(1, second);
        unit.SetValue(2, third);
        unit.SetValue(3, fourth);
        Order<HardEvent::S_MTE3>();
    }
    template <class Lines> __aicore__ inline void StoreLines(uint64_t address, const Lines &lines) {
        constexpr uint32_t words = sizeof(Lines) / sizeof(uint64_t);
        const auto unit = unit_.Get<uint64_t>();
        for (uint32_t word = 0; word < words; ++word)
            unit.SetValue(word, GetWord(lines, word));
        Order<HardEvent::S_MTE3>();
        Store(Global<uint64_t>(address), unit, words);
        Order<HardEvent::MTE3_S>();
    }
    __aicore__ inline void StoreTimes() {
        clock_.Begin(EXCHANGE_STEP_NONE);
        Times().epoch = epoch;
        Times().seal = SealOf(Times());
        StoreLines(arguments_->steps + StepsOffset(epoch), Times());
    }
    __aicore__ inline Verdict LoadLine(uint64_t address) {
        Verdict verdict;
        const auto line = unit_.Get<uint64_t>();
        Order<HardEvent::S_MTE2>();
        Load(line, Global<uint64_t>(address), line_words);
        Order<HardEvent::MTE2_S>();
        for (uint32_t word = 0; word < line_words; ++word)
            SetWord(verdict, word, line.GetValue(word));
        return verdict;
    }
    // The first `bytes` of each of `count` lines into a unit of its own.
    __aicore__ inline void LoadLines(const LocalTensor<uint64_t> &to, uint64_t address, uint32_t count,
                                     uint32_t bytes = sizeof(uint64_t)) {
        Order<HardEvent::S_MTE2>();
        DataCopyPad(to, Global<uint64_t>(address),
                    DataCopyExtParams{static_cast<uint16_t>(count), bytes, EXCHANGE_LINE_BYTES - bytes, 0, 0},
                    DataCopyPadExtParams<uint64_t>{false, 0, 0, 0});
        Order<HardEvent::MTE2_S>();
    }
    __aicore__ inline void LoadVerdicts(uint32_t stage) {
        Order<HardEvent::V_MTE2>();
        LoadLines(verdicts_.Get<uint64_t>(), arguments_->workspace + VerdictOffset(stage, 0, cores()), cores(),
                  EXCHANGE_UNIT_BYTES);
    }
    // Whether no core's verdict has a result: the greatest of the first words is EXCHANGE_OK. Changes what was loaded.
    __aicore__ inline bool IsWellEverywhere() {
        constexpr uint32_t halves = EXCHANGE_UNIT_BYTES / sizeof(int32_t);
        const auto verdicts = verdicts_.Get<int32_t>();
        for (uint32_t count = cores(); count > 1; count = (count + 1) / 2) {
            const uint32_t half = (count + 1) / 2;
            PipeBarrier<PIPE_V>();
            Max(verdicts, verdicts, verdicts[half * halves], static_cast<int32_t>((count - half) * halves));
        }
        Order<HardEvent::V_S>();
        return verdicts.GetValue(0) == EXCHANGE_OK;
    }
    __aicore__ inline void LoadStatuses() {
        LoadLines(statuses_.Get<uint64_t>(), Own(layout().status), ranks(), EXCHANGE_UNIT_BYTES);
    }
    __aicore__ inline uint64_t Word(TBuf<TPosition::VECCALC> &lines, uint32_t line, uint32_t index = 0) {
        return lines.Get<uint64_t>().GetValue(line * unit_words + index);
    }
    __aicore__ inline Verdict JudgeStatuses() {
        Verdict told = Fault(EXCHANGE_OK, 0);
        for (uint32_t source = 0; source < ranks() && told.result == EXCHANGE_OK; ++source)
            if (const uint64_t word = Word(statuses_, source); word != 0)
                told = Told(told, rank(), ranks(), source, word, Word(statuses_, source, status_value),
                            Word(statuses_, source, status_region));
        return told;
    }

    const KernelArguments *arguments_ = nullptr;
    uint32_t core_ = 0;
    uint32_t cores_ = 1;
    GlobalTensor<uint64_t> windows_;
    int64_t wait_began_ = 0;
    uint64_t timed_ = 0;
    bool is_timed_ = false;
    StepClock clock_;
    bool expired_ = false;
    TBuf<TPosition::VECCALC> unit_, words_, statuses_, verdicts_;
};

} // namespace ascend_kernels
