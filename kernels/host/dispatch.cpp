// Dispatch: announce, counts, place, arrivals.
#include <algorithm>
#include <numeric>
#include <vector>

#include "announce.h"
#include "offsets.h"
#include "placement.h"
#include "routing.h"
#include "units.h"

namespace ascend_moe {
namespace {

int64_t sum_of(const uint32_t *counts, uint32_t experts) {
    return std::accumulate(counts, counts + experts, int64_t{0});
}

// Tells every rank how many rows this one has for the experts of all, or granting for those of that rank.
void announce_counts(Session &session, const ExchangeDispatch &call, const std::vector<uint32_t> &counts) {
    const ExchangeLayout &layout = session.layout();
    const uint64_t word = sequence_word(session.epoch(), call.kind);
    int64_t sum = 0;
    for (uint32_t peer = 0; peer < session.ranks(); ++peer) {
        const uint32_t *to_peer = counts.data() + (layout.granting ? uint64_t{peer} * layout.counted : 0);
        if (layout.granting || peer == 0)
            sum = sum_of(to_peer, layout.counted);
        // @protocol push-counts
        push_units(session.window(peer).counts(session.epoch(), session.rank()), to_peer, layout.counted, word);
        push_header(session, peer, {call.kind, call.tokens, EXCHANGE_INPUT_OK, sum});
    }
}

int wait_for_counts(Session &session, uint32_t kind, uint32_t *matrix) {
    const ExchangeLayout &layout = session.layout();
    const Window own = session.own();
    const uint64_t expected = sequence_word(session.epoch(), kind);
    // @protocol wait-counts. acquire: pairs with push-counts, unit by unit.
    const int result = session.wait_for_all(EXCHANGE_REGION_RECORDS, [&](uint32_t source) {
        return sight_of_units(own.counts(session.epoch(), source), layout.count_units, expected);
    });
    if (result != EXCHANGE_OK)
        return result;
    for (uint32_t source = 0; source < layout.ranks; ++source) {
        uint32_t *counts = matrix + uint64_t{source} * layout.counted;
        read_units(own.counts(session.epoch(), source), counts, layout.counted);
        const int64_t sum = sum_of(counts, layout.counted);
        if (sum != own.header(session.epoch(), source).detail) {
            std::fill_n(counts, layout.counted, 0); // a post-mortem keeps them
            return session.fail_corrupt(EXCHANGE_REGION_RECORDS, source, static_cast<uint64_t>(sum));
        }
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
    uint64_t row = call.first_row;
    for (uint32_t local = 0; local < layout.experts / layout.ranks; ++local)
        for (uint32_t source = 0; source < layout.ranks; ++source)
            for (uint32_t i = 0; i < counts_from(layout, call, session.rank(), source)[local]; ++i, ++row) {
                const float scale = layout.quantised ? own.scale(call.slot, row) : 0;
                if (own.row_check(call.slot, row) != placed_checksum(session, own.row(call.slot, row), scale, row))
                    return session.fail_corrupt(EXCHANGE_REGION_ROWS, source, row);
            }
    return EXCHANGE_OK;
}

// Of header and counts, to all ranks.
uint64_t announced_bytes(const ExchangeLayout &layout) {
    return uint64_t{layout.ranks} * (1 + layout.count_units) * EXCHANGE_UNIT_BYTES;
}

uint64_t moved_row_bytes(const ExchangeLayout &layout, const ExchangeDispatch &call) {
    return call.row_bytes != 0 ? call.row_bytes : layout.row_bytes;
}

void trace_placement(Session &session, const ExchangeDispatch &call, const std::vector<uint32_t> &counts) {
    const auto rows = static_cast<uint64_t>(sum_of(counts.data(), session.layout().experts));
    session.trace().moves(call.kind, rows, rows * moved_row_bytes(session.layout(), call));
}

int dispatch_send(Session &session, ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    if (const int result = session.begin_exchange(); result != EXCHANGE_OK)
        return result;
    call.epoch = session.epoch();

    if (const int result = session.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    session.trace().moves(call.kind, 0, announced_bytes(layout));
    const Routing ids(call.ids, call.ids_bytes);
    std::vector<uint32_t> counts(layout.experts);
    const InputCheck check = count_experts(layout, ids, call.tokens, counts);
    if (check.error == EXCHANGE_INPUT_OK)
        announce_counts(session, call, counts);
    else
        push_headers(session, {call.kind, call.tokens, check.error, check.detail});

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
    if (const int result = derive_offsets(session, call, part, counts, offsets); result != EXCHANGE_OK)
        return result;

    if (const int result = session.begin_step(EXCHANGE_STEP_PLACE); result != EXCHANGE_OK)
        return result;
    if (session.trace().is_on())
        trace_placement(session, call, counts);
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
    const uint64_t bytes = call.total * moved_row_bytes(layout, call);
    session.trace().moves(call.kind, call.total, bytes);
    if (const int result = wait_for_arrivals(session, {call.slot, call.part}, call.kind); result != EXCHANGE_OK)
        return result;
    if (layout.verify) {
        if (const int result = session.begin_step(EXCHANGE_STEP_VERIFY); result != EXCHANGE_OK)
            return result;
        if (const int result = verify_rows(session, call); result != EXCHANGE_OK)
            return result;
    }
    const int result = session.begin_step(EXCHANGE_STEP_EXPERTS);
    session.trace().moves(call.kind, call.total, bytes);
    return result;
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
