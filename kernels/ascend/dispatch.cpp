// Dispatch for A2 and A3 (dav-2201), decode and prefill alike: announce, counts, place, arrivals. No NPU has run this
// kernel; it was executed on host_model only. Launched on any number of AIV cores, all of them resident.
#include "grants.h"
#include "kernels.h"
#include "rows.h"

namespace ascend_kernels {
namespace {

class Dispatch {
  public:
    __aicore__ inline void Run(TPipe &pipe, const DispatchArguments &arguments) {
        arguments_ = arguments;
        control_.Init(pipe, arguments_.common);
        routing_.Init(pipe, arguments_);
        pairs_.Init(pipe, control_, arguments_);
        records_.Init(pipe, control_, arguments_.kind);
        counts_.Init(pipe, control_, records_, arguments_);
        grants_.Init(pipe, control_, records_, counts_, arguments_);
        rows_.Init(pipe, control_, routing_, arguments_);
        pipe.InitBuffer(positions_, PairsInPiece(control_.layout().topk) * sizeof(int64_t));

        if (const Verdict verdict = Announce(); verdict.result != EXCHANGE_OK) {
            if (control_.core() == 0)
                control_.Conclude(verdict);
            return;
        }
        Verdict found = Agree();
        if (found.result == EXCHANGE_OK) {
            PlaceRows();
            found = grants_.Misplaced();
        }
        const Verdict verdict = MeetAtArrivals(found);
        if (control_.core() != 0)
            return;
        if (control_.IsTimed() && verdict.result == EXCHANGE_OK)
            NoteRows();
        // A dispatch that is refused holds no slot: all ranks refuse it together, so all agree on the next one.
        if (found.result != EXCHANGE_OK)
            control_.StoreState(control_.Own(control_.layout().state), control_.epoch, dispatches_);
        control_.Conclude(verdict);
    }

  private:
    // Looks at the ids, and tells every rank how many rows this one brings for each expert. The epoch advances here.
    // All cores return the same.
    __aicore__ inline Verdict Announce() {
        const ExchangeLayout &layout = control_.layout();
        const bool is_sealed = control_.LoadState(control_.Own(layout.state), control_.epoch, dispatches_);
        control_.BeginStep(EXCHANGE_STEP_ANNOUNCE);
        if (control_.IsTimed())
            control_.Times().kind = arguments_.kind;
        ++control_.epoch;
        Verdict found = control_.Fault(EXCHANGE_OK, 0);
        if (control_.core() == 0)
            found = control_.RefusePoisoned();
        if (found.result == EXCHANGE_OK && !is_sealed)
            found = control_.Corruption(EXCHANGE_REGION_STATE, control_.rank(), control_.epoch - 1);
        if (found.result == EXCHANGE_OK && arguments_.tokens > layout.max_tokens)
            found = control_.Fault(EXCHANGE_INVALID_INPUT, control_.rank(), EXCHANGE_INPUT_TOKENS, arguments_.tokens);
        if (found.result == EXCHANGE_OK)
            found = pairs_.Check(routing_);
        control_.StoreVerdict(0, found);
        if (found.result == EXCHANGE_OK)
            pairs_.Prepare(routing_);
        // Histograms and verdicts are there before another core loads them.
        SyncAll<true>();

        const Verdict input = control_.MergeVerdicts(0);
        if (input.result == EXCHANGE_POISONED || Poisons(input.result))
            return input;
        const uint64_t word = SequenceWord(control_.epoch, arguments_.kind);
        if (input.result == EXCHANGE_OK)
            pairs_.Finish();
        counts_.Push(pairs_, input, word);
        return control_.Fault(EXCHANGE_OK, 0);
    }

    // Waits for every rank's counts. All ranks decide alike whether the exchange goes on.
    __aicore__ inline Verdict Agree() {
        control_.BeginStep(EXCHANGE_STEP_COUNTS);
        const Verdict found = counts_.WaitForRecords();
        if (found.result != EXCHANGE_OK)
            return found;
        slots_before_ = dispatches_ - (arguments_.continues != 0 ? 1 : 0);
        part_ = {static_cast<uint32_t>(slots_before_ % control_.layout().slots), arguments_.part};
        return IsGranting() ? grants_.Exchange(part_, total_) : counts_.DeriveOffsets(part_, total_);
    }

    // Stores this core's units of each routed row where its expert reads it, and notes the place for combine.
    __aicore__ inline void PlaceRows() {
        control_.BeginStep(EXCHANGE_STEP_PLACE);
        rows_.UseSlot(part_.slot);
        if (control_.core() == 0)
            // @protocol take-slot
            control_.StoreState(control_.Own(control_.layout().state), control_.epoch, slots_before_ + 1);
        if (control_.core() + 1 == control_.cores())
            control_.StoreState(control_.PartState(part_), control_.epoch, 0);
        counts_.StoreCounts();
        if (IsGranting() && control_.core() + 1 == control_.cores())
            grants_.StoreTotals();
        for (uint64_t token = routing_.Begin(); token < routing_.End();) {
            const Piece piece = routing_.LoadPiece(token);
            PlacePiece(piece);
            token = piece.end;
        }
    }

    __aicore__ inline void PlacePiece(const Piece &piece) {
        const auto positions = positions_.Get<int64_t>();
        const uint32_t topk = control_.layout().topk;
        Order<HardEvent::MTE3_S>();
        if (!piece.is_counted)
            for (uint32_t pair = 0; pair < piece.pairs; ++pair)
                if (const int64_t id = routing_.Id(pair); id >= 0)
                    pairs_.Return(static_cast<uint32_t>(id));
        for (uint32_t pair = 0; pair < piece.pairs; ++pair)
            positions.SetValue(pair, TakePosition(piece.begin * topk + pair, routing_.Id(pair)));
        for (uint64_t token = piece.begin; token < piece.end; ++token) {
            const auto first = static_cast<uint32_t>(token - piece.begin) * topk;
            bool is_routed = false;
            for (uint32_t place = first; place < first + topk; ++place)
                is_routed = is_routed || positions.GetValue(place) >= 0;
            if (is_routed)
                rows_.Place(token, positions, first, first + topk);
        }
        // The core in whose share a token begins notes where it went.
        if (!piece.is_counted)
            return;
        Order<HardEvent::S_MTE3>();
        Store(Global<int64_t>(arguments_.positions + piece.begin * topk * sizeof(int64_t)), positions, piece.pairs);
    }
    __aicore__ inline int64_t TakePosition(uint64_t pair, int64_t id) {
        if (id < 0)
            return -1;
        const auto expert = static_cast<uint32_t>(id);
        const uint32_t index = pairs_.TakeIndex(pair, expert);
        const int64_t row = IsGranting() ? grants_.RowOf(expert, index) : counts_.RowOf(expert, index);
        return row < 0 ? -1 : static_cast<int64_t>(counts_.RankOf(expert)) << 32 | row;
    }

    // The first cores tell every rank that all rows of this one are there; one waits for the rows of all. `found` is
    // what this core found before.
    __aicore__ inline Verdict MeetAtArrivals(const Verdict &found) {
        control_.StoreVerdict(1, found);
        // It begins when all pipes of a core have ended: the rows of all cores are visible before a word says so.
        SyncAll<true>();
        if (control_.core() >= control_.ranks())
            return found;
        Verdict verdict = control_.MergeVerdicts(1);
        if (verdict.result != EXCHANGE_OK)
            return verdict;
        const ExchangeLayout &layout = control_.layout();
        const uint64_t word = SequenceWord(control_.epoch, arguments_.kind);
        const uint64_t lines = layout.arrive + part_.Lines(layout.ranks);
        // @protocol push-arrive. Ordered after the rows by the barriers above.
        control_.PushWord(lines + control_.rank() * EXCHANGE_LINE_BYTES, control_.core(), control_.cores(), word);
        if (control_.core() != 0)
            return verdict;
        control_.BeginStep(EXCHANGE_STEP_ARRIVALS);
        // @protocol wait-arrivals. The word was stored after the rows it announces.
        control_.BeginWait();
        bool are_all;
        verdict = control_.WaitForWords(EXCHANGE_REGION_ARRIVE, lines, 0, control_.ranks(), are_all,
                                        [word](uint64_t seen) __aicore__ { return SeenOf(seen, word); });
        if (verdict.result == EXCHANGE_OK)
            rows_.PackScales(part_.FirstRow(layout), total_);
        verdict.total = total_;
        verdict.slot = part_.slot;
        return verdict;
    }

    // For who reads the times of steps; experts begin.
    __aicore__ inline void NoteRows() {
        control_.BeginStep(EXCHANGE_STEP_EXPERTS);
        StepTimes &times = control_.Times();
        times.placed = static_cast<uint32_t>(pairs_.CountRouted());
        times.received = static_cast<uint32_t>(total_);
    }

    __aicore__ inline bool IsGranting() const { return control_.layout().granting != 0; }

    DispatchArguments arguments_;
    Control control_;
    Routing routing_;
    OwnPairs pairs_;
    Records records_;
    Counts counts_;
    Grants grants_;
    RowPlacer rows_;
    TBuf<TPosition::VECCALC> positions_;
    uint64_t dispatches_ = 0;
    uint64_t slots_before_ = 0;
    uint64_t total_ = 0;
    Part part_ = {};
};

} // namespace
} // namespace ascend_kernels

#ifndef ASCEND_KERNELS_HAVE_OTHER_ENTRIES
extern "C" __global__ __aicore__ void moe_dispatch(ascend_kernels::DispatchArguments arguments) {
    AscendC::TPipe pipe;
    ascend_kernels::Dispatch dispatch;
    dispatch.Run(pipe, arguments);
}
#endif
