/* Nothing tells an old tag from 0: whoever looks again expects a newer one. So a rank turns what it has used up into 0,
   and what nobody used is forgotten after some exchanges. That keeps the states few, and the circle of tags from meeting
   its own tail. */
#ifdef WITHOUT_EPOCHS_ADVANCING
#define USED(cell, tag) skip
#else
#define USED(cell, tag) if :: cell == (tag) -> cell = 0 :: else fi
#endif
#define FORGET(cell) if :: OUTDATED(cell, e) -> cell = 0 :: else fi
#define FORGET_COUNTED(cell) if :: OUTDATED(TAG(cell), e) -> cell = 0 :: else fi

inline forget_outdated() {
    for (i : 0 .. RANKS - 1) {
        for (j : 0 .. 1) {
            r = j * RANKS * RANKS + PAIR(me, i);
            FORGET(count_data[r]);
            FORGET(count_word[r]);
            FORGET(count_data_flight[r]);
            FORGET(count_word_flight[r])
        }
        for (j : 0 .. SLOTS - 1) {
            FORGET(row_in[ROW(j, me, i)]);
            FORGET(row_beside[ROW(j, me, i)]);
#ifdef SINGLE_RENDEZVOUS /* of dispatches that have been refused */
            FORGET(row_in_flight[ROW(j, me, i)]);
            FORGET(row_beside_flight[ROW(j, me, i)]);
            FORGET(arrive_word[LINE(j, me, i)]);
            FORGET(arrive_word_flight[LINE(j, me, i)])
#endif
        }
    }
    for (j : 0 .. SLOTS - 1) {
        FORGET_COUNTED(row_out[OUT(j, me)]);
        if
        :: OUTDATED(held[j], e) ->
            held[j] = 0;
            rendezvous[j] = 0;
            results[j] = 0;
            whole = whole && j != 0
        :: else
        fi
    }
    i = 0;
    j = 0;
    r = 0
}

inline use_up_records() {
    for (i : 0 .. RANKS - 1) {
        for (j : 0 .. 1) {
            r = j * RANKS * RANKS + PAIR(me, i);
            USED(header_data[r], e);
            USED(header_word[r], e);
            USED(count_data[r], e);
            USED(count_word[r], e);
            USED(mailbox_begin[r], e);
            USED(mailbox_end[r], e)
        }
    }
    i = 0;
    j = 0;
    r = 0
}

inline use_up_grants() {
    for (i : 0 .. RANKS - 1) {
        USED(grant_data[PAIR(me, i)], e);
        USED(grant_word[PAIR(me, i)], e)
    }
    i = 0
}

inline use_up_arrivals() {
    for (i : 0 .. RANKS - 1) {
        USED(arrive_word[LINE(slot, me, i)], e)
    }
    i = 0
}

inline use_up_done() {
    for (i : 0 .. RANKS - 1) {
        USED(done_word[LINE(slot, me, i)], COUNTED(held[slot], rendezvous[slot]))
    }
    i = 0
}
