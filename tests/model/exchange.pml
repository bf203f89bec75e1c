/* The exchange protocol: any sequence of the calls that a scenario allows, for ever, on every rank.

   -D RANKS=2|3, SLOTS=1|2, MAY_<CALL> for each call the scenario allows; FULL_FABRIC for two ranks. With HALVES the two
   slots are the halves of one window: a plan begins with the first, and MAY_DISPATCH_WHOLE takes both.
   -D WITHOUT_<STEP> takes a step of the code away: then a property must fail.
   A `@protocol NAME` comment stands where the code has the same one; docs/protocol-model.md lists them. */

#ifndef SLOTS
#define SLOTS 1
#endif

#include "fabric.pml"

/* What all ranks do next. Decided by the first rank that gets there, taken by all. */
#define NOTHING 0
#define DISPATCH 1
#define PLAN 2
#define TOO_SMALL 3               /* a dispatch that fits no window: refused after the counts */
#define MISMATCH 4                /* rank 0 plans, the others dispatch */
#define DISPATCH_WHOLE 5          /* a dispatch into both halves of a window */
#define INVALID_DISPATCH(rank) (6 + (rank))
#define INVALID_PLAN(rank) (9 + (rank))
#define COMBINE(slot) (12 + (slot)) /* again, if the dispatch in that slot has been combined */

#define INVALID_RANK(call) ((call) >= INVALID_PLAN(0) -> (call) - INVALID_PLAN(0) : (call) - INVALID_DISPATCH(0))
#define IS_INVALID(call) ((call) >= INVALID_DISPATCH(0) && (call) < COMBINE(0))
#define PLANS(call, rank) ((call) == PLAN || ((call) >= INVALID_PLAN(0) && (call) < COMBINE(0)) || \
                           ((call) == MISMATCH && (rank) == 0))
#define REFUSES(call, rank) (IS_INVALID(call) && INVALID_RANK(call) == (rank))

#define LEAD 4 /* calls that the fastest rank may be ahead; more than the protocol allows */
byte script[LEAD], takers[LEAD];

/* The caller's side of a slot: exchanges begun since its dispatch, that one included (0: nothing to combine), and how
   often it has been combined. */
byte age[SLOTS], combined[SLOTS];
byte next_slot;

#define MOST_COMBINES 2

/* A slot is dispatched again only after its combine; the code refuses the combine otherwise (rows are gone). */
#if SLOTS == 2
#define CAN_BEGIN (!(age[0] == OLDEST && combined[0] == 0) && !(age[1] == OLDEST && combined[1] == 0))
#else
#define CAN_BEGIN (!(age[0] == OLDEST && combined[0] == 0))
#endif
#ifdef MAY_ABANDON
#define CAN_DISPATCH CAN_BEGIN
#else
#define CAN_DISPATCH (CAN_BEGIN && !(age[next_slot] != 0 && combined[next_slot] == 0))
#endif
/* Prefill: a plan, then one or two rounds of it. */
#ifdef PLANNED_ROUNDS
byte rounds;
#define CAN_PLAN (CAN_BEGIN && rounds != 2)
#define HAS_PLAN (rounds != 0)
#else
#define CAN_PLAN CAN_BEGIN
#define HAS_PLAN true
#endif
#ifdef MAY_COMBINE_AGAIN
#define CAN_COMBINE(slot) (age[slot] != 0 && combined[slot] < MOST_COMBINES)
#else
#define CAN_COMBINE(slot) (age[slot] != 0 && combined[slot] == 0)
#endif

#define IS_FREE(slot) (age[slot] == 0 || combined[slot] != 0)

inline decide(call) {
    if
#ifdef MAY_DISPATCH_WHOLE
    :: CAN_BEGIN && IS_FREE(0) && IS_FREE(1) -> call = DISPATCH_WHOLE
#endif
#ifdef MAY_DISPATCH
    :: CAN_DISPATCH && HAS_PLAN -> call = DISPATCH
#endif
#ifdef MAY_PLAN
    :: CAN_PLAN -> call = PLAN
#endif
#ifdef MAY_BE_TOO_SMALL
    :: CAN_BEGIN -> call = TOO_SMALL
#endif
#ifdef MAY_MISMATCH
    :: CAN_BEGIN -> call = MISMATCH
#endif
#ifdef MAY_BE_INVALID
    :: CAN_BEGIN -> call = INVALID_DISPATCH(0)
    :: CAN_BEGIN -> call = INVALID_DISPATCH(RANKS - 1)
#endif
#ifdef MAY_PLAN_INVALID
    :: CAN_BEGIN -> call = INVALID_PLAN(0)
    :: CAN_BEGIN -> call = INVALID_PLAN(RANKS - 1)
#endif
    :: CAN_COMBINE(0) -> call = COMBINE(0)
#if SLOTS == 2
    :: CAN_COMBINE(1) -> call = COMBINE(1)
#endif
    fi;
    d_step {
        if
        :: call < COMBINE(0) ->
            for (i : 0 .. SLOTS - 1) {
                if
                :: age[i] == 0 -> skip
                :: age[i] == OLDEST -> age[i] = 0; combined[i] = 0
                :: else -> age[i]++
                fi
            }
#ifdef PLANNED_ROUNDS
            /* 2: a plan of which no round has been made; 1: of which one more may be made */
            rounds = (call == PLAN -> 2 : rounds - 1);
#endif
            if
            :: call == DISPATCH ->
                age[next_slot] = 1;
                combined[next_slot] = 0;
                next_slot = (next_slot + 1) % SLOTS
#ifdef HALVES
            :: call == DISPATCH_WHOLE ->
                age[0] = 1;
                combined[0] = 0;
                age[1] = 0;
                combined[1] = 0;
                next_slot = 0
            :: call == PLAN -> next_slot = 0
#endif
            :: else
            fi
        :: else -> combined[call - COMBINE(0)]++
        fi;
        i = 0
    }
}

inline take_call() {
    if
    :: script[position] == NOTHING -> decide(script[position])
    :: else
    fi;
    d_step {
        call = script[position];
        takers[position]++;
        assert(takers[position] <= RANKS);
        if
        :: takers[position] == RANKS -> script[position] = NOTHING; takers[position] = 0
        :: else
        fi;
        position = (position + 1) % LEAD
    }
}

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
            FORGET(row_beside[ROW(j, me, i)])
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

/* @protocol joint-fit: from the same counts every rank finds that a dispatch fits no window, or none does. */
#ifdef WITHOUT_JOINT_FIT
#define FITS (call != TOO_SMALL || me != 0)
#else
#define FITS (call != TOO_SMALL)
#endif

/* The last region of the dispatch that holds `slot`. */
#define LAST(slot) (whole && (slot) == 0 -> SLOTS - 1 : (slot))

inline place_rows() {
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
    for (peer : 0 .. RANKS - 1) {
        for (i : slot .. LAST(slot)) {
            r = ROW(i, peer, POSITION(e, me));
            /* @protocol place-row */
#ifndef WITHOUT_PLACE_ROW
            if
            :: peer == me -> assert(row_in_flight[r] == 0); row_in[r] = e
            :: else -> send(row_in[r], row_in_flight[r], e)
            fi;
#endif
            /* @protocol place-scale */
            /* @protocol place-check */
#ifndef WITHOUT_PLACE_BESIDE
            if
            :: peer == me -> assert(row_beside_flight[r] == 0); row_beside[r] = e
            :: else -> send(row_beside[r], row_beside_flight[r], e)
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
        :: else -> assert(arrive_word_flight[r] == 0); arrive_word_flight[r] = e
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

bool eager; /* experts run as soon as a dispatch is there, or as late as its combine */

proctype rank(byte me) {
    byte call, position, e, slot, next, peer, r, i, j;
    byte held[SLOTS];       /* the dispatch that holds the slot */
    byte rendezvous[SLOTS]; /* done words pushed for it */
    byte results[SLOTS];    /* times it has been combined */
    bool refused;
    bool whole; /* the dispatch in slot 0 holds both halves */

    do
    :: atomic {
           take_call();
           if
           :: call < COMBINE(0) ->
               if
               :: call == DISPATCH && held[next] != 0 && results[next] != 0 -> read_rows(next)
#ifdef HALVES
               :: call == DISPATCH_WHOLE && held[1] != 0 && results[1] != 0 -> read_rows(1)
#endif
               :: else
               fi;
#ifdef HALVES
               if
               :: call == DISPATCH_WHOLE || call == PLAN -> next = 0
               :: else
               fi;
#endif
               d_step { begin_exchange() }
               announce()
           :: else -> slot = call - COMBINE(0)
           fi
       }
       if
       :: call < COMBINE(0) ->
           atomic { wait_headers(); skip }
           if
           :: refused -> skip /* only if it did not wait for all headers */
           :: else -> atomic { read_headers(); skip }
           fi;
           if
           :: refused -> d_step { use_up_records(); finish() }
           :: !refused && PLANS(call, me) -> atomic { read_mailboxes(); use_up_records(); finish() }
           :: else ->
               atomic { wait_counts(); skip }
               atomic { read_counts(); use_up_records() }
               if
               :: FITS ->
                   atomic { place_rows(); results[slot] = 0 }
                   atomic {
                       wait_arrivals();
                       use_up_arrivals();
                       if
                       :: eager -> read_rows(slot); write_out(slot, 1)
                       :: else
                       fi;
                       finish()
                   }
               :: else -> d_step { finish() }
               fi
           fi
       :: else ->
           if
           :: results[slot] == 0 ->
               atomic {
                   read_rows(slot);
                   if
                   :: eager
                   :: else -> write_out(slot, 1)
                   fi
               }
               atomic { read_rows(slot); push_done(slot) }
           :: else ->
               /* @protocol rejoin */
#ifndef WITHOUT_REJOIN
               atomic { push_done(slot); skip }
               atomic { wait_done(slot); use_up_done() }
#endif
               atomic { write_out(slot, results[slot] + 1); push_done(slot) }
           fi;
           /* @protocol wait-done */
#ifndef WITHOUT_WAIT_DONE
           atomic { wait_done(slot); use_up_done() }
#endif
           atomic { results[slot]++; read_out(slot, results[slot]); finish() }
       fi;
    od
}

init {
    atomic {
        byte one, other;
#ifdef EXPERTS_AT_ANY_TIME
        if
        :: eager = false
        :: eager = true
        fi;
#endif
#ifndef FULL_FABRIC
        if
        :: late = false
        :: late = true
        fi;
#endif
        for (one : 0 .. RANKS - 1) {
            epoch_at[one] = EPOCHS - 1; /* the first exchange is the last before the circle closes */
            run rank(one);
#ifdef FULL_FABRIC
            for (other : 0 .. RANKS - 1) {
                if
                :: one != other -> run link(one, other)
                :: else
                fi
            }
#endif
        }
    }
}
