// Combine: done, reduce.
#include <vector>

#include "checksum.h"
#include "row_kernels.h"
#include "segments.h"
#include "session.h"

namespace ascend_moe {
namespace {

// Pushes the next done word of this dispatch.
int push_done(Session &session, Part part) {
    PartState state = {};
    if (const int result = session.load_state(part, state); result != EXCHANGE_OK)
        return result;
    session.own().part(part) = {session.epoch(), state.rendezvous + 1};
    const uint64_t word = sequence_word(session.epoch(), state.rendezvous + 1);
    for (uint32_t peer = 0; peer < session.ranks(); ++peer)
        // @protocol push-done. release: this rank's expert outputs, and its reads so far, come before the word.
        session.window(peer).done(part, session.rank()).store(word, std::memory_order_release);
    return EXCHANGE_OK;
}

// Waits for everyone's done word that answers to the last one pushed.
int wait_for_done(Session &session, Part part) {
    const Window own = session.own();
    PartState state = {};
    if (const int result = session.load_state(part, state); result != EXCHANGE_OK)
        return result;
    const uint64_t expected = sequence_word(session.epoch(), state.rendezvous);
    // @protocol wait-done. acquire: pairs with push-done. A peer may be one rendezvous ahead.
    return session.wait_for_all(EXCHANGE_REGION_DONE, [&](uint32_t source) {
        const uint64_t seen = own.done(part, source).load(std::memory_order_acquire);
        if (epoch_of(seen) != session.epoch())
            return sight_of(seen, expected);
        if (!window_words::rendezvous_is_possible(tag_of(seen), state.rendezvous))
            return Sight{Seen::impossible, seen};
        return Sight{seen >= expected ? Seen::ready : Seen::pending, seen};
    });
}

// Where the results of a token lie, and their weights, in k order.
class TermList {
  public:
    TermList(const Session &session, const ExchangeCombine &call)
        : session_(session), call_(call), terms_(session.layout().topk) {}

    Terms of(uint64_t token) {
        const uint64_t topk = terms_.size();
        uint64_t count = 0;
        for (uint64_t index = token * topk; index < (token + 1) * topk; ++index) {
            const int64_t position = call_.positions[index];
            if (position < 0)
                continue;
            const Window owner = session_.window(static_cast<uint32_t>(position >> 32));
            const auto row = static_cast<uint64_t>(position & 0xffffffff);
            terms_[count++] = {owner.out(call_.slot, row), call_.weights[index]};
        }
        return {terms_.data(), count};
    }

  private:
    const Session &session_;
    const ExchangeCombine &call_;
    std::vector<Term> terms_;
};

// Reads the results of each token of a segment where their experts wrote them, and sums them up.
void reduce_segment(const Session &session, const ExchangeCombine &call, uint32_t begin, uint32_t end) {
    const ExchangeLayout &layout = session.layout();
    const auto reduce = row_kernels().reduce[layout.element];
    // Those of a token and of the next one.
    TermList lists[2] = {{session, call}, {session, call}};
    Terms terms = begin < end ? lists[begin % 2].of(begin) : Terms();
    for (uint64_t token = begin; token < end; ++token) {
        const Terms upcoming = token + 1 < end ? lists[(token + 1) % 2].of(token + 1) : Terms();
        reduce(terms, layout.hidden, static_cast<uint8_t *>(call.out) + token * call.out_stride, upcoming);
        terms = upcoming;
    }
}

// Gives every row of this rank's experts the checksum that its readers compare.
void seal_out(Session &session, const ExchangeCombine &call) {
    const Window own = session.own();
    for (uint64_t row = call.first_row; row < call.first_row + call.total; ++row)
        own.out_check(call.slot, row) =
            row_checksum(own.out(call.slot, row), session.layout().out_row_bytes, session.epoch(), row);
}

int verify_out(Session &session, const ExchangeCombine &call) {
    const ExchangeLayout &layout = session.layout();
    for (uint64_t index = 0; index < uint64_t{call.tokens} * layout.topk; ++index) {
        const int64_t position = call.positions[index];
        if (position < 0)
            continue;
        const auto owner = static_cast<uint32_t>(position >> 32);
        const auto row = static_cast<uint64_t>(position & 0xffffffff);
        const Window window = session.window(owner);
        if (window.out_check(call.slot, row) !=
            row_checksum(window.out(call.slot, row), layout.out_row_bytes, session.epoch(), row))
            return session.fail_corrupt(EXCHANGE_REGION_OUT, owner, row);
    }
    return EXCHANGE_OK;
}

int combine_send(Session &session, const ExchangeCombine &call) {
    if (const int result = session.resume_exchange(call.epoch); result != EXCHANGE_OK)
        return result;
    if (session.layout().verify)
        seal_out(session, call);
    if (const int result = session.begin_step(EXCHANGE_STEP_DONE); result != EXCHANGE_OK)
        return result;
    return push_done(session, {call.slot, call.part});
}

int combine_receive(Session &session, const ExchangeCombine &call) {
    if (const int result = wait_for_done(session, {call.slot, call.part}); result != EXCHANGE_OK)
        return result;
    if (session.layout().verify) {
        if (const int result = session.begin_step(EXCHANGE_STEP_VERIFY); result != EXCHANGE_OK)
            return result;
        if (const int result = verify_out(session, call); result != EXCHANGE_OK)
            return result;
    }
    if (const int result = session.begin_step(EXCHANGE_STEP_REDUCE); result != EXCHANGE_OK)
        return result;
    run_segments(segment_bounds(session, call.positions, call.tokens),
                 [&](uint32_t begin, uint32_t end) { reduce_segment(session, call, begin, end); });
    return EXCHANGE_OK;
}

} // namespace
} // namespace ascend_moe

int exchange_combine(ExchangeSession *session, const ExchangeCombine *call) {
    ascend_moe::Session wrapped(*session);
    const int result = ascend_moe::combine_send(wrapped, *call);
    return result != EXCHANGE_OK ? result : ascend_moe::combine_receive(wrapped, *call);
}

int exchange_combine_send(ExchangeSession *session, const ExchangeCombine *call) {
    ascend_moe::Session wrapped(*session);
    return ascend_moe::combine_send(wrapped, *call);
}

int exchange_combine_receive(ExchangeSession *session, const ExchangeCombine *call) {
    ascend_moe::Session wrapped(*session);
    if (const int result = wrapped.resume_exchange(call->epoch); result != EXCHANGE_OK)
        return result;
    if (const int result = wrapped.begin_step(EXCHANGE_STEP_DONE); result != EXCHANGE_OK)
        return result;
    return ascend_moe::combine_receive(wrapped, *call);
}

int exchange_rejoin(ExchangeSession *session, const ExchangeCombine *call) {
    ascend_moe::Session wrapped(*session);
    if (const int result = wrapped.resume_exchange(call->epoch); result != EXCHANGE_OK)
        return result;
    if (const int result = wrapped.begin_step(EXCHANGE_STEP_REJOIN); result != EXCHANGE_OK)
        return result;
    // @protocol rejoin
    if (const int result = ascend_moe::push_done(wrapped, {call->slot, call->part}); result != EXCHANGE_OK)
        return result;
    return ascend_moe::wait_for_done(wrapped, {call->slot, call->part});
}
