/* The steps of an exchange, as the kernels take them. */

/* Only to show that a scenario gets to the end of a call. */
#define COMBINE_FIRST COMBINE(0)
#define COMBINE_SECOND COMBINE(1)
#define INVALID_DISPATCH_OF_LAST INVALID_DISPATCH(RANKS - 1)
#define INVALID_PLAN_OF_LAST INVALID_PLAN(RANKS - 1)
#ifdef NEVER
#define REACHED(done) assert((done) != NEVER)
#else
#define REACHED(done) skip
#endif

inline finish() {
    REACHED(call);
    call = NOTHING;
    slot = 0;
    refused = false
}

/* @protocol advance-epoch */
inline begin_exchange() {
#ifndef WITHOUT_EPOCHS_ADVANCING
    epoch_at[me] = NEXT(epoch_at[me]);
#endif
    e = epoch_at[me];
    for (peer : 0 .. RANKS - 1) {
        /* progress: a rank that waits for ever would be left behind */
        assert(epoch_at[peer] == e || AHEAD(epoch_at[peer], e) || AHEAD(e, epoch_at[peer]));
        assert(epoch_at[peer] != NEXT(NEXT(e)) && e != NEXT(NEXT(epoch_at[peer])));
    }
    peer = 0;
    forget_outdated()
}

/* A rank may send its counts again before the ones it sent two epochs ago have landed, because nobody waits for counts
   after an error in a header. To one place writes stay in order. */
inline send_counts(r) {
    d_step {
        LAND(count_data[r], count_data_flight[r]);
        LAND(count_word[r], count_word_flight[r])
    }
    send(count_data[r], count_data_flight[r], e);
    count_word_flight[r] = e
}

inline announce() {
    for (peer : 0 .. RANKS - 1) {
        if
        :: peer == me ->
            skip /* what a rank writes into its own window is there at once */
        :: else ->
            if
            :: !PLANS(call, me) && !REFUSES(call, me) ->
                skip;
                /* @protocol push-counts */
#ifndef WITHOUT_PUSH_COUNTS
                send_counts(COUNTS(e, peer, me))
#endif
            :: else ->
                skip;
                /* @protocol post-mailbox: a plan, or the text of a refusal */
#ifndef WITHOUT_POST_MAILBOX
                send(mailbox_begin[MAILBOX(e, peer, me)], mailbox_begin_flight[MAILBOX(e, peer, me)], e);
                send(mailbox_end[MAILBOX(e, peer, me)], mailbox_end_flight[MAILBOX(e, peer, me)], e)
#endif
            fi;
            /* @protocol push-header */
#ifndef WITHOUT_PUSH_HEADER
            send(header_data[HEADER(e, peer, me)], header_data_flight[HEADER(e, peer, me)], e);
            assert(header_word_flight[HEADER(e, peer, me)] == 0);
            header_word_flight[HEADER(e, peer, me)] = e
#endif
        fi
    }
    peer = 0
}

#define FOR_EACH_PEER for (peer : 0 .. RANKS - 1) { if :: peer == me -> skip :: else ->
#define END_EACH_PEER fi } peer = 0

inline wait_headers() {
    /* @protocol wait-headers */
#ifndef WITHOUT_WAIT_HEADERS
    FOR_EACH_PEER
        r = HEADER(e, me, peer);
        await_word(header_word[r], header_word_flight[r], e);
#ifndef FULL_FABRIC
        d_step {
            LAND(header_data[r], header_data_flight[r]);
            LAND(mailbox_begin[MAILBOX(e, me, peer)], mailbox_begin_flight[MAILBOX(e, me, peer)]);
            LAND(mailbox_end[MAILBOX(e, me, peer)], mailbox_end_flight[MAILBOX(e, me, peer)]);
            LAND(header_word[r], header_word_flight[r])
        }
#endif
#ifdef WITHOUT_ALL_HEADERS
        if
        :: REFUSES(call, peer) -> refused = true; break
        :: else
        fi
#endif
    END_EACH_PEER;
    r = 0
#else
    skip
#endif
}

/* Sets `refused` as every rank does from the same headers. */
inline read_headers() {
    FOR_EACH_PEER
        assert(header_data[HEADER(e, me, peer)] == e); /* stale or torn header */
        if
        :: REFUSES(call, peer) ->
            assert(mailbox_begin[MAILBOX(e, me, peer)] == e && mailbox_end[MAILBOX(e, me, peer)] == e)
        :: else
        fi
    END_EACH_PEER;
    refused = false;
    /* @protocol check-kind */
#ifndef WITHOUT_KIND_CHECK
    refused = refused || call == MISMATCH;
#endif
    /* @protocol check-error */
#ifndef WITHOUT_ERROR_CHECK
    refused = refused || IS_INVALID(call);
#endif
}

inline read_mailboxes() {
    FOR_EACH_PEER
        assert(mailbox_begin[MAILBOX(e, me, peer)] == e && mailbox_end[MAILBOX(e, me, peer)] == e)
    END_EACH_PEER
}

inline wait_counts() {
    /* @protocol wait-counts */
#ifndef WITHOUT_WAIT_COUNTS
    FOR_EACH_PEER
        r = COUNTS(e, me, peer);
        await_word(count_word[r], count_word_flight[r], e);
#ifndef FULL_FABRIC
        d_step {
            LAND(count_data[r], count_data_flight[r]);
            LAND(count_word[r], count_word_flight[r])
        }
#endif
    END_EACH_PEER;
    r = 0
#else
    skip
#endif
}

inline read_counts() {
    FOR_EACH_PEER
        assert(count_data[COUNTS(e, me, peer)] == e) /* stale or torn counts */
    END_EACH_PEER
}

/* A rank that has everyone's counts tells each source where its rows go, and whether all fit. */
inline push_grants() {
    FOR_EACH_PEER
        r = PAIR(peer, me);
        /* @protocol push-grant */
#ifndef WITHOUT_PUSH_GRANT
        send(grant_data[r], grant_data_flight[r], e);
        assert(grant_word_flight[r] == 0);
        grant_word_flight[r] = e
#else
        skip
#endif
    END_EACH_PEER;
    r = 0
}

inline wait_grants() {
    /* @protocol wait-grants */
#ifndef WITHOUT_WAIT_GRANTS
    FOR_EACH_PEER
        r = PAIR(me, peer);
        await_word(grant_word[r], grant_word_flight[r], e);
#ifndef FULL_FABRIC
        d_step {
            LAND(grant_data[r], grant_data_flight[r]);
            LAND(grant_word[r], grant_word_flight[r])
        }
#endif
    END_EACH_PEER;
    r = 0
#else
    skip
#endif
}

inline read_grants() {
    FOR_EACH_PEER
        assert(grant_data[PAIR(me, peer)] == e) /* stale or torn grant */
    END_EACH_PEER
}

/* @protocol joint-fit: from the same counts or grants every rank finds that a dispatch fits no window, or none does. */
#ifdef WITHOUT_JOINT_FIT
#define FITS (call != TOO_SMALL || me != 0)
#else
#define FITS (call != TOO_SMALL)
#endif

/* The last region of the dispatch that holds `slot`. */
#define LAST(slot) (whole && (slot) == 0 -> SLOTS - 1 : (slot))

inline take_slot() {
    slot = next;
    next = (next + 1) % SLOTS;
    if
    :: slot == 0 -> whole = (call == DISPATCH_WHOLE)
    :: else
    fi;
    if
    :: whole && slot == 0 -> held[SLOTS - 1] = 0; results[SLOTS - 1] = 0; rendezvous[SLOTS - 1] = 0; next = 0
    :: else
    fi;
    held[slot] = e;
    rendezvous[slot] = 0;
    results[slot] = 0
}

/* Rows of a dispatch with a single rendezvous may still be under way when it has been refused: one rank's writes to
   one place then have to stay in order. */
#ifdef PLACING_IN_ORDER
#define IN_ORDER(place, flight) d_step { LAND(place, flight) }
#else
#define IN_ORDER(place, flight) skip
#endif

/* With a single rendezvous rows last until they are combined: a rank that has seen everyone's done word places the next
   ones, whatever the others have begun. */
#if defined(SINGLE_RENDEZVOUS) && !defined(ROWS_OUTLAST_COMBINE)
#define ROWS_LAST false
#else
#define ROWS_LAST true
#endif

inline send_row(place, flight) {
    IN_ORDER(place, flight);
    send(place, flight, e)
}

inline place_rows() {
    for (peer : 0 .. RANKS - 1) {
        for (i : slot .. LAST(slot)) {
            r = ROW(i, peer, POSITION(e, me));
            /* @protocol place-row */
#ifndef WITHOUT_PLACE_ROW
            if
            :: peer == me -> assert(row_in_flight[r] == 0); row_in[r] = e
            :: else -> send_row(row_in[r], row_in_flight[r])
            fi;
#endif
            /* @protocol place-scale */
            /* @protocol place-check */
#ifndef WITHOUT_PLACE_BESIDE
            if
            :: peer == me -> assert(row_beside_flight[r] == 0); row_beside[r] = e
            :: else -> send_row(row_beside[r], row_beside_flight[r])
            fi;
#endif
            /* @protocol drain-rows: with push-arrive one fence */
            skip
        }
        i = 0;
        /* @protocol push-arrive */
#ifndef WITHOUT_PUSH_ARRIVE
        r = LINE(slot, peer, me);
        if
        :: peer == me -> skip
        :: else -> IN_ORDER(arrive_word[r], arrive_word_flight[r]); assert(arrive_word_flight[r] == 0);
                   arrive_word_flight[r] = e
        fi
#endif
    }
    peer = 0;
    r = 0
}

inline wait_arrivals() {
    /* @protocol wait-arrivals */
#ifndef WITHOUT_WAIT_ARRIVALS
    FOR_EACH_PEER
        r = LINE(slot, me, peer);
        await_word(arrive_word[r], arrive_word_flight[r], e);
#ifndef FULL_FABRIC
        d_step {
            LAND(arrive_word[r], arrive_word_flight[r]);
            for (i : slot .. LAST(slot)) {
                r = ROW(i, me, POSITION(e, peer));
                LAND(row_in[r], row_in_flight[r]);
                LAND(row_beside[r], row_beside_flight[r])
            }
            i = 0
        }
#endif
    END_EACH_PEER;
    r = 0
#else
    skip
#endif
}

/* Every row of the slot is there and is of the dispatch that holds the slot. */
inline read_rows(slot) {
    for (peer : 0 .. RANKS - 1) {
        for (i : slot .. LAST(slot)) {
            assert(row_in[ROW(i, me, peer)] == held[slot]);
            assert(row_beside[ROW(i, me, peer)] == held[slot])
        }
    }
    i = 0;
    peer = 0
}

/* @protocol write-out: experts, or the copy of what combine was given */
inline write_out(slot, result) {
#ifndef WITHOUT_WRITE_OUT
    for (i : slot .. LAST(slot)) {
        send(row_out[OUT(i, me)], row_out_flight[OUT(i, me)], COUNTED(held[slot], result))
    }
#endif
    i = 0
}

/* A done word may be pushed before the last one has landed; to one place writes stay in order. */
inline push_done(slot) {
    rendezvous[slot]++;
    FOR_EACH_PEER
        r = LINE(slot, peer, me);
        /* @protocol push-done */
#ifndef WITHOUT_PUSH_DONE
        if
        :: done_word_flight[r] != 0 && OUTPUTS_LANDED(me) -> done_word[r] = done_word_flight[r]
        :: true
        fi;
        done_word_flight[r] = COUNTED(held[slot], rendezvous[slot])
#endif
    END_EACH_PEER;
    r = 0
}

#define MET(word) (TAG(word) == held[slot] && (word) >= COUNTED(held[slot], rendezvous[slot]))

inline wait_done(slot) {
    FOR_EACH_PEER
        r = LINE(slot, me, peer);
#ifdef FULL_FABRIC
        (MET(done_word[r]) || AHEAD(TAG(done_word[r]), held[slot]));
        assert(MET(done_word[r]))
#else
        (MET(done_word[r]) || MET(done_word_flight[r]) || AHEAD(TAG(done_word_flight[r]), held[slot]));
        assert(MET(done_word[r]) || MET(done_word_flight[r]));
        d_step {
            if
            :: !MET(done_word[r]) ->
                for (i : 0 .. SLOTS - 1) {
                    LAND(row_out[OUT(i, peer)], row_out_flight[OUT(i, peer)])
                }
                i = 0;
                LAND(done_word[r], done_word_flight[r])
            :: else
            fi
        }
#endif
    END_EACH_PEER;
    r = 0
}

inline read_out(slot, result) {
    FOR_EACH_PEER
        /* @protocol read-out */
        for (i : slot .. LAST(slot)) {
            assert(row_out[OUT(i, peer)] == COUNTED(held[slot], result)) /* stale, or overwritten too early */
        }
        i = 0
    END_EACH_PEER
}
