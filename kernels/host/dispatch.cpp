// Dispatch: announce, counts, place, arrivals.
#include <algorithm>
#include <numeric>
#include <vector>

#include "announce.h"
#include "placement.h"
#include "routing.h"

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

int64_t sum_of(const uint32_t *counts, uint32_t experts) {
    return std::accumulate(counts, counts + experts, int64_t{0});
}

int wait_for_counts(Session &session, uint32_t kind, uint32_t *matrix) {
    const ExchangeLayout &layout = session.layout();
    const Window own = session.own();
    const uint64_t expected = sequence_word(session.epoch(), kind);
    // @protocol wait-counts. acquire: pairs with push-counts, unit by unit.
    const int result = session.wait_for_all(EXCHANGE_REGION_RECORDS, [&](uint32_t source) {
        const CountUnit *units = own.counts(session.epoch(), source);
        for (uint32_t unit = 0; unit < layout.count_units; ++unit) {
            const uint64_t seen = units[unit].word.load(std::memory_order_acquire);
            if (seen != expected)
                return sight_of(seen, expected);
        }
        return Sight{Seen::ready, expected};
    });
    if (result != EXCHANGE_OK)
        return result;
    for (uint32_t source = 0; source < layout.ranks; ++source) {
        const CountUnit *unit = own.counts(session.epoch(), source);
        uint32_t *counts = matrix + source * layout.experts;
        for (uint32_t first = 0; first < layout.experts; first += EXCHANGE_COUNTS_PER_UNIT, ++unit)
            for (uint32_t i = 0; i < EXCHANGE_COUNTS_PER_UNIT && first + i < layout.experts; ++i)
                counts[first + i] = unit->counts[i];
        const int64_t sum = sum_of(counts, layout.experts);
        if (sum != own.header(session.epoch(), source).detail) {
            std::fill_n(counts, layout.experts, 0); // a post-mortem keeps them
            return session.fail_corrupt(EXCHANGE_REGION_RECORDS, source, static_cast<uint64_t>(sum));
        }
    }
    return EXCHANGE_OK;
}

// Where this rank's next row for each expert goes, and what arrives here. All ranks compute the same totals from the
// same matrix, so either all of them refuse or none does.
int derive_offsets(Session &session, ExchangeDispatch &call, Part part, std::vector<uint64_t> &offsets) {
    const ExchangeLayout &layout = session.layout();
    call.first_row = part.first_row(layout);
    const uint32_t local_experts = layout.experts / layout.ranks;
    for (uint32_t destination = 0; destination < layout.ranks; ++destination) {
        uint64_t row = call.first_row, total = 0;
        for (uint32_t local = 0; local < local_experts; ++local) {
            const uint32_t expert = destination * local_experts + local;
            if (layout.expert_rows > 0)
                row = call.first_row + local * layout.expert_rows;
            const uint64_t expert_begin = row;
            for (uint32_t source = 0; source < layout.ranks; ++source) {
                if (source == session.rank())
                    offsets[expert] = row;
                row += call.matrix[source * layout.experts + expert];
            }
            total += row - expert_begin;
            if (destination == session.rank())
                call.counts[local] = static_cast<int64_t>(row - expert_begin);
        }
        // @protocol joint-fit
        if (total > part.capacity(layout))
            return session.fail(EXCHANGE_WINDOW_TOO_SMALL, destination, 0, static_cast<int64_t>(total));
        if (destination == session.rank())
            call.total = total;
    }
    return EXCHANGE_OK;
}

void push_arrivals(Session &session, Part part, uint32_t kind) {
    const uint64_t word = sequence_word(session.epoch(), kind);
    for (uint32_t peer = 0; peer < session.ranks(); ++peer)
        // @protocol push-arrive. release: every row placed in that window is seen before the word.
        session.window(peer).arrive(part, session.rank()).store(word, std::memory_order_release);
}

int wait_for_arrivals(Session &session, Part part, uint32_t kind) {
    const Window own = session.own();
    const uint64_t expected = sequence_word(session.epoch(), kind);
    // @protocol wait-arrivals. acquire: pairs with push-arrive.
    return session.wait_for_all(EXCHANGE_REGION_ARRIVE, [&](uint32_t source) {
        return sight_of(own.arrive(part, source).load(std::memory_order_acquire), expected);
    });
}

// Compares every row that arrived with the checksum that its source sent along.
int verify_rows(Session &session, const ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    const Window own = session.own();
    const uint32_t first_expert = session.rank() * (layout.experts / layout.ranks);
    uint64_t row = call.first_row;
    for (uint32_t local = 0; local < layout.experts / layout.ranks; ++local)
        for (uint32_t source = 0; source < layout.ranks; ++source)
            for (uint32_t i = 0; i < call.matrix[source * layout.experts + first_expert + local]; ++i, ++row) {
                const float scale = layout.quantised ? own.scale(call.slot, row) : 0;
                if (own.row_check(call.slot, row) != placed_checksum(session, own.row(call.slot, row), scale, row))
                    return session.fail_corrupt(EXCHANGE_REGION_ROWS, source, row);
            }
    return EXCHANGE_OK;
}

int dispatch_send(Session &session, ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    if (const int result = session.begin_exchange(); result != EXCHANGE_OK)
        return result;
    call.epoch = session.epoch();

    if (const int result = session.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    const Routing ids(call.ids, call.ids_bytes);
    std::vector<uint32_t> counts(layout.experts);
    const InputCheck check = count_experts(layout, ids, call.tokens, counts);
    int64_t detail = check.detail;
    if (check.error == EXCHANGE_INPUT_OK) {
        push_counts(session, counts, call.kind);
        detail = sum_of(counts.data(), layout.experts);
    }
    push_headers(session, {call.kind, call.tokens, check.error, detail});

    if (const int result = session.begin_step(EXCHANGE_STEP_COUNTS); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_headers(session, call.kind); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_counts(session, call.kind, call.matrix); result != EXCHANGE_OK)
        return result;
    ExchangeState state = {};
    if (const int result = session.load_state(state); result != EXCHANGE_OK)
        return result;
    // A dispatch that is refused holds no slot: all ranks refuse it together, so all agree on the next one.
    const uint64_t dispatch_number = call.continues ? state.dispatches - 1 : state.dispatches;
    const Part part = {static_cast<uint32_t>(dispatch_number % layout.slots), call.part};
    std::vector<uint64_t> offsets(layout.experts);
    if (const int result = derive_offsets(session, call, part, offsets); result != EXCHANGE_OK)
        return result;

    if (const int result = session.begin_step(EXCHANGE_STEP_PLACE); result != EXCHANGE_OK)
        return result;
    // @protocol take-slot
    session.own().state() = {session.epoch(), dispatch_number + 1};
    call.slot = part.slot;
    keep_weights(layout, call);
    session.own().part(part) = {session.epoch(), 0};
    place_rows(session, call, ids, offsets);
    push_arrivals(session, part, call.kind);
    return EXCHANGE_OK;
}

int dispatch_receive(Session &session, const ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    if (const int result = session.begin_step(EXCHANGE_STEP_ARRIVALS); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_arrivals(session, {call.slot, call.part}, call.kind); result != EXCHANGE_OK)
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
    const int result = ascend_moe::dispatch_send(wrapped, *call);
    return result != EXCHANGE_OK ? result : ascend_moe::dispatch_receive(wrapped, *call);
}

int exchange_dispatch_send(ExchangeSession *session, ExchangeDispatch *call) {
    ascend_moe::Session wrapped(*session);
    return ascend_moe::dispatch_send(wrapped, *call);
}

int exchange_dispatch_receive(ExchangeSession *session, const ExchangeDispatch *call) {
    ascend_moe::Session wrapped(*session);
    const int result = wrapped.resume_exchange(call->epoch);
    return result != EXCHANGE_OK ? result : ascend_moe::dispatch_receive(wrapped, *call);
}
