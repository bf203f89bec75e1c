// The steps with which every exchange begins: announce to all ranks, wait for the announcements of all.
#pragma once

#include "session.h"

namespace ascend_moe {

struct Announcement {
    uint32_t kind;
    uint32_t tokens;
    uint32_t error; // ExchangeInputError
    int64_t detail; // as in HeaderUnit
    uint32_t block_bytes = 0;
    uint32_t block_check = 0;
};

// Writes `block` into this rank's mailbox in every window; push_headers makes it visible.
void post_mailboxes(Session &session, const uint8_t *block, uint64_t bytes);

// Pushes the header unit of the current epoch to a rank, after whatever belongs to it has been written.
void push_header(Session &session, uint32_t peer, const Announcement &announcement);
// The same to every rank.
void push_headers(Session &session, const Announcement &announcement);

// Waits for every header. Refuses together: every rank fails if any rank announced another kind or an error.
int wait_for_headers(Session &session, uint32_t kind);

} // namespace ascend_moe
