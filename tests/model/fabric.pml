/* Windows, and the fabric between the ranks: remote writes arrive late and in any order that no fence forbids.

   A cell holds the tag of the exchange that wrote it, so that reading anything but the exchange expected is an
   assertion that fails. Every cell has a place in a window and a flight, the write that is still under way to it. At
   most one write to a cell is under way, which is asserted, not assumed; count units are the exception (see
   send_counts).

   FULL_FABRIC: processes `link` let each write land at any time, payload and words alike.
   Otherwise the extremes only: a word lands when it is waited for, all payload at once or all with its word. See
   docs/protocol-model.md for why this shows the same failures. */

/* Exchanges during which a dispatch may be open, its own included. */
#ifndef OLDEST
#define OLDEST 2
#endif

/* Tags go round in a circle, 1 .. EPOCHS; 0 is "older than anything that matters". */
#define FORGOTTEN (OLDEST + 1)
#define EPOCHS (2 * FORGOTTEN)
#define NEXT(e) ((e) % EPOCHS + 1)
#define AHEAD(seen, e) ((seen) != 0 && (((seen) + EPOCHS - (e)) % EPOCHS == 1 || ((seen) + EPOCHS - (e)) % EPOCHS == 2))
#define OUTDATED(tag, e) ((tag) != 0 && ((e) + EPOCHS - (tag)) % EPOCHS == FORGOTTEN)

/* done words and expert outputs: the tag of the dispatch, and how manieth rendezvous or result of it */
#define COUNTED(e, n) ((e) * 4 + (n))
#define TAG(counted) ((counted) / 4)

#define PAIR(window, source) ((window) * RANKS + (source))

/* @protocol record-parity */
#ifdef WITHOUT_HEADER_PARITY
#define HEADER(e, window, source) PAIR(window, source)
#else
#define HEADER(e, window, source) (((e) & 1) * RANKS * RANKS + PAIR(window, source))
#endif
#ifdef WITHOUT_COUNTS_PARITY
#define COUNTS(e, window, source) PAIR(window, source)
#else
#define COUNTS(e, window, source) (((e) & 1) * RANKS * RANKS + PAIR(window, source))
#endif

/* @protocol mailbox-parity */
#ifdef WITHOUT_MAILBOX_PARITY
#define MAILBOX(e, window, source) PAIR(window, source)
#else
#define MAILBOX(e, window, source) (((e) & 1) * RANKS * RANKS + PAIR(window, source))
#endif

/* @protocol take-slot */
#ifdef WITHOUT_SLOT_ROTATION
#define REGION(slot) 0
#else
#define REGION(slot) (slot)
#endif

#define LINE(slot, window, source) (REGION(slot) * RANKS * RANKS + PAIR(window, source))
#define ROW(slot, window, position) (REGION(slot) * RANKS * RANKS + PAIR(window, position))
#define OUT(slot, window) (REGION(slot) * RANKS + (window))

#define RECORDS (2 * RANKS * RANKS)
#define LINES (SLOTS * RANKS * RANKS)

byte header_data[RECORDS], header_data_flight[RECORDS]; /* tokens, error, detail, block_bytes */
byte header_word[RECORDS], header_word_flight[RECORDS];
byte count_data[RECORDS], count_data_flight[RECORDS];
byte count_word[RECORDS], count_word_flight[RECORDS];
#ifdef GRANTS
byte grant_data[RANKS * RANKS], grant_data_flight[RANKS * RANKS]; /* of one exchange at a time */
byte grant_word[RANKS * RANKS], grant_word_flight[RANKS * RANKS];
#endif
byte mailbox_begin[RECORDS], mailbox_begin_flight[RECORDS]; /* two units, so that it can be torn */
byte mailbox_end[RECORDS], mailbox_end_flight[RECORDS];
byte row_in[LINES], row_in_flight[LINES];
byte row_beside[LINES], row_beside_flight[LINES]; /* its scale and its checksum */
byte arrive_word[LINES], arrive_word_flight[LINES];
byte done_word[LINES], done_word_flight[LINES];
byte row_out[SLOTS * RANKS], row_out_flight[SLOTS * RANKS]; /* written by the owner, and late for the others */

byte epoch_at[RANKS]; /* the exchange that a rank has begun last */

#ifdef SINGLE_RENDEZVOUS
/* Each source has places of its own, because no counts are known yet. */
#define POSITION(e, source) (source)
#define WRITER(position, e) (position)
#else
/* In a window each row is written by another source from epoch to epoch: a late write would hit somebody else's row. */
#define POSITION(e, source) (((source) + (e)) % RANKS)
#define WRITER(position, e) (((position) + RANKS * EPOCHS - (e)) % RANKS)
#endif

#if SLOTS == 2
#define EACH_SLOT(condition, one, other) (condition(0, one, other) && condition(1, one, other))
#else
#define EACH_SLOT(condition, one, other) condition(0, one, other)
#endif

/* What must have landed before a word may: the release of the code, but only within the unit, the mailbox, the rows of
   that window and the writer's own outputs. Nothing relies on more. */
#ifdef WITHOUT_COUNTS_FENCE
#define COUNT_UNIT_LANDED(r) true
#else
#define COUNT_UNIT_LANDED(r) (count_data_flight[r] == 0)
#endif
#ifdef WITHOUT_GRANT_FENCE
#define GRANT_LANDED(r) true
#else
#define GRANT_LANDED(r) (grant_data_flight[r] == 0)
#endif
#ifdef WITHOUT_HEADER_FENCE
#define HEADER_UNIT_LANDED(r) true
#else
#define HEADER_UNIT_LANDED(r) (header_data_flight[r] == 0)
#endif
#ifdef WITHOUT_MAILBOX_FENCE
#define MAILBOX_LANDED(m) true
#else
#define MAILBOX_LANDED(m) (mailbox_begin_flight[m] == 0 && mailbox_end_flight[m] == 0)
#endif
#ifdef HEADER_RELEASES_COUNTS /* as on the host, where a release covers every earlier write */
#define COUNTS_LANDED(r) (count_data_flight[r] == 0 && count_word_flight[r] == 0)
#else
#define COUNTS_LANDED(r) true
#endif
#ifdef WITHOUT_ARRIVE_FENCE
#define ROWS_LANDED(window, position) true
#else
#define ROWS_LANDED(window, position) EACH_SLOT(ROW_LANDED, window, position)
#define ROW_LANDED(slot, window, position) \
    (row_in_flight[ROW(slot, window, position)] == 0 && row_beside_flight[ROW(slot, window, position)] == 0)
#endif
#ifdef WITHOUT_DONE_FENCE
#define OUTPUTS_LANDED(owner) true
#else
#define OUTPUTS_LANDED(owner) EACH_SLOT(OUTPUT_LANDED, owner, 0)
#define OUTPUT_LANDED(slot, owner, unused) (row_out_flight[OUT(slot, owner)] == 0)
#endif

/* Ends the flight of a write. */
#define LAND(place, flight) if :: flight != 0 -> place = flight; flight = 0 :: else fi

#ifdef FULL_FABRIC

inline send(place, flight, value) {
    assert(flight == 0); /* no two writes to one place are under way */
    flight = value
}

#define LANDS(place, flight, released) :: d_step { (flight != 0 && (released)) -> place = flight; flight = 0 }

#define RECORD_LANDS(r) \
    LANDS(count_data[r], count_data_flight[r], true) \
    LANDS(count_word[r], count_word_flight[r], COUNT_UNIT_LANDED(r)) \
    LANDS(header_data[r], header_data_flight[r], true) \
    LANDS(header_word[r], header_word_flight[r], HEADER_UNIT_LANDED(r) && COUNTS_LANDED(r) && \
          MAILBOX_LANDED(MAILBOX(header_word_flight[r], window, source))) \
    LANDS(mailbox_begin[r], mailbox_begin_flight[r], true) \
    LANDS(mailbox_end[r], mailbox_end_flight[r], true)

#ifdef GRANTS
#define GRANT_LANDS(r) \
    LANDS(grant_data[r], grant_data_flight[r], true) \
    LANDS(grant_word[r], grant_word_flight[r], GRANT_LANDED(r))
#else
#define GRANT_LANDS(r)
#endif

#define ROW_LANDS(row, position) \
    LANDS(row_in[row], row_in_flight[row], WRITER(position, row_in_flight[row]) == source) \
    LANDS(row_beside[row], row_beside_flight[row], WRITER(position, row_beside_flight[row]) == source)

#define SLOT_LANDS(slot) \
    ROW_LANDS(ROW(slot, window, 0), 0) \
    ROW_LANDS(ROW(slot, window, 1), 1) \
    LANDS(arrive_word[LINE(slot, window, source)], arrive_word_flight[LINE(slot, window, source)], \
          ROWS_LANDED(window, POSITION(arrive_word_flight[LINE(slot, window, source)], source))) \
    LANDS(done_word[LINE(slot, window, source)], done_word_flight[LINE(slot, window, source)], \
          OUTPUTS_LANDED(source)) \
    LANDS(row_out[OUT(slot, source)], row_out_flight[OUT(slot, source)], true)

#if RANKS != 2
#error "the full fabric is for two ranks; three have too many states"
#endif

proctype link(byte source; byte window) {
    do
    RECORD_LANDS(PAIR(window, source))
    RECORD_LANDS(RANKS * RANKS + PAIR(window, source))
    GRANT_LANDS(PAIR(window, source))
    SLOT_LANDS(0)
#if SLOTS == 2
    SLOT_LANDS(1)
#endif
    od
}

/* Waits until a word has landed. A word of a later exchange is what the code calls impossible. */
inline await_word(word, flight, e) {
    (word == (e) || AHEAD(word, e));
    assert(word == (e))
}

#else /* a word lands when it is waited for, payload as late as its word allows or at once */

bool late;

inline send(place, flight, value) {
    assert(flight == 0);
    if
    :: late -> flight = value
    :: else -> place = value
    fi
}

inline await_word(word, flight, e) {
    (word == (e) || flight == (e) || AHEAD(word, e) || AHEAD(flight, e));
    assert(word == (e) || flight == (e))
}

#endif
