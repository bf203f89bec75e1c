// Exchanges that place no rows: of serialised blocks, and refused ones; and the calls around an exchange.
#include "announce.h"
#include "checksum.h"

namespace ascend_moe {
namespace {

int plan(Session &session, ExchangePlan &call) {
    const ExchangeLayout &layout = session.layout();
    if (const int result = session.begin_exchange(); result != EXCHANGE_OK)
        return result;
    if (const int result = session.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    session.trace().moves(EXCHANGE_PLAN, 0, uint64_t{session.ranks()} * call.block_bytes);
    post_mailboxes(session, call.block, call.block_bytes);
    push_headers(session, {EXCHANGE_PLAN, call.tokens, call.input_error, call.detail, call.block_bytes,
                           block_checksum(call.block, call.block_bytes)});

    if (const int result = session.begin_step(EXCHANGE_STEP_COUNTS); result != EXCHANGE_OK)
        return result;
    if (const int result = wait_for_headers(session, EXCHANGE_PLAN); result != EXCHANGE_OK)
        return result;
    for (uint32_t source = 0; source < session.ranks(); ++source) {
        const uint32_t bytes = session.own().header(session.epoch(), source).block_bytes;
        if (bytes > layout.mailbox_bytes)
            return session.fail_corrupt(EXCHANGE_REGION_RECORDS, source, bytes);
        call.lengths[source] = bytes;
        uint8_t *block = call.blocks + source * layout.mailbox_bytes;
        if (const int result = session.open_mailbox(source, bytes, block); result != EXCHANGE_OK)
            return result;
    }
    return EXCHANGE_OK;
}

int refuse(Session &session, uint32_t kind, const uint8_t *text, uint32_t text_bytes) {
    if (const int result = session.begin_exchange(); result != EXCHANGE_OK)
        return result;
    if (const int result = session.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    post_mailboxes(session, text, text_bytes);
    push_headers(session, {kind, 0, EXCHANGE_INPUT_ARGUMENT, text_bytes, text_bytes, block_checksum(text, text_bytes)});
    if (const int result = session.begin_step(EXCHANGE_STEP_COUNTS); result != EXCHANGE_OK)
        return result;
    return wait_for_headers(session, kind);
}

} // namespace
} // namespace ascend_moe

int exchange_refuse(ExchangeSession *session, uint32_t kind, const uint8_t *text, uint32_t text_bytes) {
    ascend_moe::Session wrapped(*session);
    return ascend_moe::refuse(wrapped, kind, text, text_bytes);
}

int exchange_plan(ExchangeSession *session, ExchangePlan *call) {
    ascend_moe::Session wrapped(*session);
    return ascend_moe::plan(wrapped, *call);
}

void exchange_leave(const ExchangeSession *session, uint32_t result, uint32_t step, uint64_t epoch) {
    const ascend_moe::Window own(*session->layout, session->windows[session->rank]);
    // @protocol keep-finding. What this rank has said about an earlier failure stands: it names the real culprit.
    const uint64_t said = own.status(session->rank).load(std::memory_order_relaxed);
    if (!ascend_moe::status_is_possible(said, session->layout->ranks))
        ascend_moe::push_status(*session, {result, session->rank, step, static_cast<uint32_t>(epoch)});
}

uint32_t exchange_abi_version() { return EXCHANGE_ABI_VERSION; }

void exchange_initialise(const ExchangeLayout *layout, void *window, uint64_t first_epoch) {
    // Fresh shared memory is zero, and zero words mean "nothing yet" for every epoch from 1 on.
    const ascend_moe::Window own(*layout, window);
    own.state() = {first_epoch, 0};
    for (uint32_t slot = 0; slot < layout->slots; ++slot)
        for (const uint32_t part : {EXCHANGE_FIRST_HALF, EXCHANGE_SECOND_HALF})
            own.part({slot, part}) = {0, 0};
}
