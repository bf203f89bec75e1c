#include "announce.h"

namespace ascend_moe {

void post_mailboxes(Session &session, const uint8_t *block, uint64_t bytes) {
    for (uint32_t peer = 0; peer < session.ranks(); ++peer)
        // @protocol post-mailbox. Ordered before the header word by push-header.
        memcpy(session.window(peer).mailbox(session.epoch(), session.rank()), block, bytes);
}

void push_header(Session &session, uint32_t peer, const Announcement &announcement) {
    HeaderUnit &header = session.window(peer).header(session.epoch(), session.rank());
    header.tokens = announcement.tokens;
    header.error = announcement.error;
    header.detail = announcement.detail;
    header.block_bytes = announcement.block_bytes;
    header.block_check = announcement.block_check;
    // @protocol push-header. release: the unit's payload, and the mailbox of a plan, are seen before its word.
    header.word.store(sequence_word(session.epoch(), announcement.kind), std::memory_order_release);
}

void push_headers(Session &session, const Announcement &announcement) {
    for (uint32_t peer = 0; peer < session.ranks(); ++peer)
        push_header(session, peer, announcement);
}

namespace {

// Where a header has come, in another kind's exchange too.
Sight sight_of_header(uint64_t word, uint64_t epoch) {
    const uint64_t seen = epoch_of(word);
    return {seen == epoch ? Seen::ready : seen < epoch ? Seen::pending : Seen::impossible, word};
}

window_words::Header fields_of(const HeaderUnit &unit) {
    return {tag_of(unit.word.load(std::memory_order_relaxed)), unit.tokens, unit.error, unit.block_bytes, unit.detail};
}

} // namespace

int wait_for_headers(Session &session, uint32_t kind) {
    const Window own = session.own();
    const uint64_t epoch = session.epoch();
    // @protocol wait-headers. acquire: pairs with push-header.
    const int result = session.wait_for_all(EXCHANGE_REGION_RECORDS, [&](uint32_t source) {
        return sight_of_header(own.header(epoch, source).word.load(std::memory_order_acquire), epoch);
    });
    if (result != EXCHANGE_OK)
        return result;
    const uint32_t none = session.ranks();
    uint32_t mismatching = none, refusing = none;
    window_words::Header mismatch = {}, refusal = {};
    for (uint32_t source = 0; source < session.ranks(); ++source) {
        const window_words::Header header = fields_of(own.header(epoch, source));
        uint64_t value;
        if (!window_words::header_is_possible(session.layout(), header, value))
            return session.fail_corrupt(EXCHANGE_REGION_RECORDS, source, value);
        if (header.kind != kind && mismatching == none) {
            mismatching = source;
            mismatch = header;
        }
        if (header.error != EXCHANGE_INPUT_OK && refusing == none) {
            refusing = source;
            refusal = header;
        }
    }
    // @protocol check-kind
    if (mismatching != none)
        return session.fail(EXCHANGE_MISMATCH, mismatching, mismatch.kind, kind);
    // @protocol check-error
    if (refusing != none)
        return session.fail_refused(refusing, refusal);
    return EXCHANGE_OK;
}

} // namespace ascend_moe
