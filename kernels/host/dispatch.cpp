// Dispatch: announce, counts, place, arrivals.
#include <bit>
#include <vector>

#include "announce.h"
#include "checksum.h"
#include "routing.h"
#include "row_kernels.h"

namespace ascend_moe {
namespace {

void push_counts(Session &session, const std::vector<uint32_t> &counts, uint32_t kind) {
    const uint64_t word = sequence_word(session.epoch(), kind);
    const uint32_t experts = session.layout().experts;
    for (uint32_t peer = 0; peer < session.ranks(); ++peer) {
        CountUnit *unit = session.window(peer).counts(session.epoch(), session.rank());
        for (uint32_t first = 0; first < experts; first += EXCHANGE_COUNTS_PER_UNIT, ++unit) {
            for (uint32_t i = 0; i < EXCHANGE_COUNTS_PER_UNIT; ++i)
                unit->counts[i] = first + i < experts ? counts[first + i] : 0;
            // @protocol push-counts. release: the counts of a unit are seen before its word.
            unit->word.store(word, std::memory_order_release);
        }
    }
}

int wait_for_counts(Session &session, uint32_t kind, uint32_t *matrix) {
    const ExchangeLayout &layout = session.layout();
    const Window own = session.own();
    const uint64_t expected = sequence_word(session.epoch(), kind);
    // @protocol wait-counts. acquire: pairs with push-counts, unit by unit.
    const int result = session.wait_for_all([&](uint32_t source) {
        const CountUnit *units = own.counts(session.epoch(), source);
        for (uint32_t unit = 0; unit < layout.count_units; ++unit) {
            const uint64_t seen = units[unit].word.load(std::memory_order_acquire);
            if (seen != expected)
                return seen < expected ? Seen::pending : Seen::impossible;
        }
        return Seen::ready;
    });
    if (result != EXCHANGE_OK)
        return result;
    for (uint32_t source = 0; source < layout.ranks; ++source) {
        const CountUnit *units = own.counts(session.epoch(), source);
        for (uint32_t expert = 0; expert < layout.experts; ++expert)
            matrix[source * layout.experts + expert] =
                units[expert / EXCHANGE_COUNTS_PER_UNIT].counts[expert % EXCHANGE_COUNTS_PER_UNIT];
    }
    return EXCHANGE_OK;
}

// Where this rank's next row for each expert goes, and what arrives here. All ranks compute the same totals from the
// same matrix, so either all of them refuse or none does.
int derive_offsets(Session &session, ExchangeDispatch &call, std::vector<uint64_t> &offsets) {
    const ExchangeLayout &layout = session.layout();
    const uint32_t local_experts = layout.experts / layout.ranks;
    for (uint32_t destination = 0; destination < layout.ranks; ++destination) {
        uint64_t row = 0;
        for (uint32_t local = 0; local < local_experts; ++local) {
            const uint32_t expert = destination * local_experts + local;
            const uint64_t expert_begin = row;
            for (uint32_t source = 0; source < layout.ranks; ++source) {
                if (source == session.rank())
                    offsets[expert] = row;
                row += call.matrix[source * layout.experts + expert];
            }
            if (destination == session.rank())
                call.counts[local] = static_cast<int64_t>(row - expert_begin);
        }
        if (row > layout.capacity)
            return session.fail(EXCHANGE_WINDOW_TOO_SMALL, destination, 0, static_cast<int64_t>(row));
        if (destination == session.rank())
            call.total = row;
    }
    return EXCHANGE_OK;
}

uint64_t placed_checksum(const Session &session, const uint8_t *row, float scale, uint64_t place) {
    const uint64_t seed = place ^ uint64_t{std::bit_cast<uint32_t>(scale)} << 32;
    return row_checksum(row, session.layout().row_bytes, session.epoch(), seed);
}

// What goes with a placed row: the scale of its int8 values, and its checksum.
void place_beside(Session &session, uint32_t slot, const int64_t *positions, const uint8_t *row, float scale) {
    const ExchangeLayout &layout = session.layout();
    for (uint64_t k = 0; k < layout.topk; ++k) {
        if (positions[k] < 0)
            continue;
        const Window window = session.window(static_cast<uint32_t>(positions[k] >> 32));
        const auto place = static_cast<uint64_t>(positions[k] & 0xffffffff);
        // @protocol place-scale
        if (layout.quantised)
            window.scale(slot, place) = scale;
        // @protocol place-check
        if (layout.verify)
            window.row_check(slot, place) = placed_checksum(session, row, scale, place);
    }
}

// Payloads of more bytes than this are stored past the caches (measured: docs/benchmarks.md).
constexpr uint64_t streaming_bytes = 12 << 20;

// Writes each routed row into the places where its experts read it, and notes those places for combine.
void place_rows(Session &session, const ExchangeDispatch &call, const Routing &ids, std::vector<uint64_t> &offsets) {
    const ExchangeLayout &layout = session.layout();
    const RowKernels &kernels = row_kernels();
    const uint32_t local_experts = layout.experts / layout.ranks;
    const bool streaming = uint64_t{call.tokens} * layout.topk * layout.row_bytes > streaming_bytes;
    const auto scatter = streaming ? kernels.scatter_streaming : kernels.scatter;
    std::vector<uint8_t *> places(layout.topk);
    std::vector<int8_t> quantised(layout.quantised ? layout.hidden : 0);
    for (uint64_t token = 0; token < call.tokens; ++token) {
        const uint8_t *row = static_cast<const uint8_t *>(call.x) + token * call.x_stride;
        int64_t *positions = call.positions + token * layout.topk;
        uint32_t count = 0;
        for (uint64_t k = 0; k < layout.topk; ++k) {
            const int64_t id = ids[token * layout.topk + k];
            positions[k] = -1;
            if (id < 0)
                continue;
            const auto expert = static_cast<uint32_t>(id);
            const uint32_t destination = expert / local_experts;
            const uint64_t place = offsets[expert]++;
            places[count++] = session.window(destination).row(call.slot, place);
            positions[k] = static_cast<int64_t>(uint64_t{destination} << 32 | place);
        }
        float scale = 0;
        if (layout.quantised && count > 0) {
            scale = kernels.quantise[layout.element](row, layout.hidden, quantised.data());
            row = reinterpret_cast<const uint8_t *>(quantised.data());
        }
        // @protocol place-row
        scatter(places.data(), count, row, layout.row_bytes);
        if (layout.quantised || layout.verify)
            place_beside(session, call.slot, positions, row, scale);
    }
    if (streaming)
        kernels.drain();
}

void push_arrivals(Session &session, uint32_t slot, uint32_t kind) {
    const uint64_t word = sequence_word(session.epoch(), kind);
    for (uint32_t peer = 0; peer < session.ranks(); ++peer)
        // @protocol push-arrive. release: every row placed in that window is seen before the word.
        session.window(peer).arrive(slot, session.rank()).store(word, std::memory_order_release);
}

int wait_for_arrivals(Session &session, uint32_t slot, uint32_t kind) {
    const Window own = session.own();
    const uint64_t expected = sequence_word(session.epoch(), kind);
    // @protocol wait-arrivals. acquire: pairs with push-arrive.
    return session.wait_for_all([&](uint32_t source) {
        const uint64_t seen = own.arrive(slot, source).load(std::memory_order_acquire);
        if (seen == expected)
            return Seen::ready;
        return seen < expected ? Seen::pending : Seen::impossible;
    });
}

// Compares every row that arrived with the checksum that its source sent along.
int verify_rows(Session &session, const ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    const Window own = session.own();
    const uint32_t first_expert = session.rank() * (layout.experts / layout.ranks);
    uint64_t row = 0;
    for (uint32_t local = 0; local < layout.experts / layout.ranks; ++local)
        for (uint32_t source = 0; source < layout.ranks; ++source)
            for (uint32_t i = 0; i < call.matrix[source * layout.experts + first_expert + local]; ++i, ++row) {
                const float scale = layout.quantised ? own.scale(call.slot, row) : 0;
                if (own.row_check(call.slot, row) != placed_checksum(session, own.row(call.slot, row), scale, row))
                    return session.fail(EXCHANGE_CORRUPTION, source, 0, static_cast<int64_t>(row));
            }
    return EXCHANGE_OK;
}

int dispatch(Session &session, ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    if (const int result = session.begin_exchange(); result != EXCHANGE_OK)
        return result;
    call.epoch = session.epoch();

    if (const int result = session.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    const Routing ids(call.ids, call.ids_bytes);
    std::vector<uint32_t> counts(layout.experts);
    const InputCheck check = count_experts(layout, ids, call.tokens, counts);
    if (check.error == EXCHANGE_INPUT_OK)
        push_counts(session, counts, call.kind);
    push_headers(session, {call.kind, call.tokens, check.error, check.detail, 0});

    if (const int result = session.begin_step(EXCHANGE_STEP_COUNTS); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_headers(session, call.kind); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_counts(session, call.kind, call.matrix); result != EXCHANGE_OK)
        return result;
    std::vector<uint64_t> offsets(layout.experts);
    if (const int result = derive_offsets(session, call, offsets); result != EXCHANGE_OK)
        return result;

    if (const int result = session.begin_step(EXCHANGE_STEP_PLACE); result != EXCHANGE_OK)
        return result;
    ExchangeState &state = session.own().state();
    call.slot = static_cast<uint32_t>(state.dispatches++ % layout.slots);
    session.own().slot(call.slot) = {session.epoch(), 0};
    place_rows(session, call, ids, offsets);
    push_arrivals(session, call.slot, call.kind);

    if (const int result = session.begin_step(EXCHANGE_STEP_ARRIVALS); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_arrivals(session, call.slot, call.kind); result != EXCHANGE_OK)
        return result;
    if (layout.verify) {
        if (const int result = session.begin_step(EXCHANGE_STEP_VERIFY); result != EXCHANGE_OK)
            return result;
        if (const int result = verify_rows(session, call); result != EXCHANGE_OK)
            return result;
    }
    return session.begin_step(EXCHANGE_STEP_EXPERTS);
}

} // namespace
} // namespace ascend_moe

int exchange_dispatch(ExchangeSession *session, ExchangeDispatch *call) {
    ascend_moe::Session wrapped(*session);
    return ascend_moe::dispatch(wrapped, *call);
}
