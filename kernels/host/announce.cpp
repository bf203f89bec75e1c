#include "announce.h"

namespace ascend_moe {

void post_mailboxes(Session &session, const uint8_t *block, uint64_t bytes) {
    for (uint32_t peer = 0; peer < session.ranks(); ++peer)
        // @protocol post-mailbox. Ordered before the header word by push-header.
        memcpy(session.window(peer).mailbox(session.epoch(), session.rank()), block, bytes);
}

void push_headers(Session &session, const Announcement &announcement) {
    const uint64_t word = sequence_word(session.epoch(), announcement.kind);
    for (uint32_t peer = 0; peer < session.ranks(); ++peer) {
        HeaderUnit &header = session.window(peer).header(session.epoch(), session.rank());
        header.tokens = announcement.tokens;
        header.error = announcement.error;
        header.detail = announcement.detail;
        header.block_bytes = announcement.block_bytes;
        // @protocol push-header. release: the unit's payload, and the mailbox of a plan, are seen before its word.
        header.word.store(word, std::memory_order_release);
    }
}

int wait_for_headers(Session &session, uint32_t kind) {
    const Window own = session.own();
    const uint64_t epoch = session.epoch();
    // @protocol wait-headers. acquire: pairs with push-header.
    const int result = session.wait_for_all([&](uint32_t source) {
        const uint64_t seen = epoch_of(own.header(epoch, source).word.load(std::memory_order_acquire));
        if (seen == epoch)
            return Seen::ready;
        return seen < epoch ? Seen::pending : Seen::impossible;
    });
    if (result != EXCHANGE_OK)
        return result;
    for (uint32_t source = 0; source < session.ranks(); ++source) {
        // @protocol check-kind
        const uint32_t other = tag_of(own.header(epoch, source).word.load(std::memory_order_relaxed));
        if (other != kind)
            return session.fail(EXCHANGE_MISMATCH, source, other, kind);
    }
    for (uint32_t source = 0; source < session.ranks(); ++source) {
        const HeaderUnit &header = own.header(epoch, source);
        if (header.error == EXCHANGE_INPUT_ARGUMENT)
            session.keep_refusal(source, header.block_bytes);
        // @protocol check-error
        if (header.error != EXCHANGE_INPUT_OK)
            return session.fail(EXCHANGE_INVALID_INPUT, source, header.error, header.detail);
    }
    return EXCHANGE_OK;
}

} // namespace ascend_moe
