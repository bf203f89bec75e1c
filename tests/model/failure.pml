/* Failure at any step: one rank dies, stalls, raises or leaves early; the others must end and must name that rank.

   -D RANKS=2|3. -D GRANTS: one more rendezvous. -D WITHOUT_<STEP> takes a step of the code away: then a property must fail.
   That the words order their payload is shown by exchange.pml; here payload is there at once, and the words and
   statuses of a rank come late to each of the others. */

#define EXCHANGES 2

#define HEADER 0
#define ARRIVE 1
#define DONE 2
#define GRANT 3
#ifdef GRANTS
#define KINDS 4
#define GRANT_AT_REST(window, source) (word_flight[WORD(GRANT, window, source)] == 0)
#else
#define KINDS 3
#define GRANT_AT_REST(window, source) true
#endif

#define PAIR(window, source) ((window) * RANKS + (source))
#define WORD(kind, window, source) ((kind) * RANKS * RANKS + PAIR(window, source))

/* Only to show that a survivor fails at each fate of the victim. */
#ifdef NEVER
#define REACHED(fate) assert(me == victim || fate != NEVER)
#else
#define REACHED(fate) skip
#endif

#define NOBODY 7
#define FINDING(culprit) (1 + (culprit)) /* lost, timed out, failed or told so */
#define CLOSED(culprit) (9 + (culprit))
#define SAYS_CLOSED(status) ((status) >= 9)
#define SAYS_FINDING(status) ((status) != 0 && (status) < 9)
#define CULPRIT(status) (((status) - 1) % 8)

mtype = { nothing, dies, stalls, raises, leaves_early }

byte word[KINDS * RANKS * RANKS], word_flight[KINDS * RANKS * RANKS];
byte status[RANKS * RANKS], status_flight[RANKS * RANKS];
byte row_in[RANKS * RANKS], row_out[RANKS];
bool ended[RANKS];   /* its process: what a process descriptor shows */
bool stalled[RANKS];
bool waiting[RANKS];
byte progress[RANKS]; /* rendezvous begun */
bool failed[RANKS];

byte victim;
mtype fate;
bool struck;  /* the victim's fate has come */
bool expired; /* a wait has ended at its deadline */

/* @protocol push-status: released after the words of the same rank */
#ifdef WITHOUT_STATUS_FENCE
#define WORDS_LANDED(window, source) true
#else
#define WORDS_LANDED(window, source) \
    (word_flight[WORD(HEADER, window, source)] == 0 && word_flight[WORD(ARRIVE, window, source)] == 0 && \
     word_flight[WORD(DONE, window, source)] == 0 && GRANT_AT_REST(window, source))
#endif

#define LANDS(place, flight, released) :: d_step { (flight != 0 && (released)) -> place = flight; flight = 0 }

proctype link(byte source; byte window) {
end_idle:
    do
    LANDS(word[WORD(HEADER, window, source)], word_flight[WORD(HEADER, window, source)], true)
    LANDS(word[WORD(ARRIVE, window, source)], word_flight[WORD(ARRIVE, window, source)], true)
    LANDS(word[WORD(DONE, window, source)], word_flight[WORD(DONE, window, source)], true)
#ifdef GRANTS
    LANDS(word[WORD(GRANT, window, source)], word_flight[WORD(GRANT, window, source)], true)
#endif
    LANDS(status[PAIR(window, source)], status_flight[PAIR(window, source)], WORDS_LANDED(window, source))
    :: atomic {
           ended[source] && WORDS_LANDED(window, source) && status_flight[PAIR(window, source)] == 0 ->
           break
       }
    od
}

#if RANKS == 2
#define ALL(condition) (condition(0) && condition(1))
#define FIRST(condition) (condition(0) -> 0 : (condition(1) -> 1 : NOBODY))
#else
#define ALL(condition) (condition(0) && condition(1) && condition(2))
#define FIRST(condition) (condition(0) -> 0 : (condition(1) -> 1 : (condition(2) -> 2 : NOBODY)))
#endif

#define READY(source) ((source) == me || word[WORD(kind, me, source)] >= exchange)
#define MISSING(source) (!READY(source))
#define TOLD(source) ((source) != me && SAYS_FINDING(status[PAIR(me, source)]))
#define HAS_ENDED(source) ((source) != me && (SAYS_CLOSED(status[PAIR(me, source)]) || SEEN_DEAD(source)))
#define NOTED(source) ((noted >> (source)) & 1)
#define MISSING_AND_ENDED(source) (MISSING(source) && HAS_ENDED(source))
#define MISSING_AND_NOTED(source) (MISSING(source) && NOTED(source))
#define NOTED_MISSING_AND_ENDED(source) (NOTED(source) && HAS_ENDED(source))
#define STOPPED(source) (ended[source] || stalled[source] || failed[source])
#define NOT_BEFORE_ME(source) ((source) == me || STOPPED(source) || (waiting[source] && progress[source] >= progress[me]))
#define SENT(peer) (word_flight[WORD(HEADER, peer, me)] == 0 && word_flight[WORD(ARRIVE, peer, me)] == 0 && \
                    word_flight[WORD(DONE, peer, me)] == 0 && GRANT_AT_REST(peer, me) && status_flight[PAIR(peer, me)] == 0)

#if RANKS == 2
#define NOTE(condition) (condition(0) + 2 * condition(1))
#else
#define NOTE(condition) (condition(0) + 2 * condition(1) + 4 * condition(2))
#endif

/* @protocol watch-processes */
#ifdef WITHOUT_WATCHING_PROCESSES
#define SEEN_DEAD(source) false
#else
#define SEEN_DEAD(source) ended[source]
#endif

/* @protocol judge-status */
#ifdef WITHOUT_JUDGING_STATUS
#define TELLER NOBODY
#else
#define TELLER FIRST(TOLD)
#endif

/* The victim's fate may come between any two steps. */
#define DIE_OR_STALL \
    if \
    :: atomic { me == victim && !struck && fate == dies -> struck = true }; goto dead \
    :: atomic { me == victim && !struck && fate == stalls -> struck = true; stalled[me] = true }; \
       if \
       :: goto stays_stalled \
       :: atomic { expired -> stalled[me] = false } \
       fi \
    :: else \
    fi

/* What a caller's hook or its experts raise ends the call. */
#define MAY_RAISE \
    if \
    :: atomic { me == victim && !struck && fate == raises -> struck = true; culprit = me }; goto fail \
    :: true \
    fi

/* Only the victim can be stopped between two pushes; those of the others land one by one anyway. */
#define PUSH(kind) \
    if \
    :: me == victim -> TO_EACH_PEER(DIE_OR_STALL; atomic { SEND(kind) }) \
    :: else -> atomic { TO_EACH_PEER(SEND(kind)) } \
    fi

#define SEND(kind) \
    if \
    :: kind == ARRIVE -> row_in[PAIR(peer, me)] = exchange \
    :: else \
    fi; \
    if \
    :: word_flight[WORD(kind, peer, me)] != 0 -> word[WORD(kind, peer, me)] = word_flight[WORD(kind, peer, me)] \
    :: else \
    fi; \
    word_flight[WORD(kind, peer, me)] = exchange

#define TO_EACH_PEER(send) \
    for (peer : 0 .. RANKS - 1) { \
        if \
        :: peer == me \
        :: else -> send \
        fi \
    } \
    peer = 0

#define MEET(kind_of_word) \
    d_step { kind = kind_of_word; progress[me]++ } \
    PUSH(kind_of_word); \
    DIE_OR_STALL; \
    waiting[me] = true; \
    do \
    :: atomic { ALL(READY) -> waiting[me] = false; break } \
    :: atomic { !ALL(READY) && TELLER != NOBODY -> culprit = CULPRIT(status[PAIR(me, TELLER)]) }; goto told \
    LOOK \
    EXPIRE \
    od

/* @protocol note-ended: who has ended is looked up before who is missing */
#ifdef WITHOUT_LOOKING_IN_ORDER
#define LOOK \
    :: atomic { !ALL(READY) -> noted = NOTE(MISSING) }; \
       atomic { \
           culprit = (TELLER != NOBODY -> NOBODY : FIRST(NOTED_MISSING_AND_ENDED)); \
           noted = 0; \
           if \
           :: culprit != NOBODY -> goto found \
           :: else \
           fi \
       }
#else
#define LOOK \
    :: atomic { FIRST(MISSING_AND_ENDED) != NOBODY -> noted = NOTE(HAS_ENDED) }; \
       atomic { \
           culprit = (TELLER != NOBODY -> NOBODY : FIRST(MISSING_AND_NOTED)); \
           noted = 0; \
           if \
           :: culprit != NOBODY -> goto found \
           :: else \
           fi \
       }
#endif

/* @protocol deadline: time passes when nobody can do anything else; of two waits the earlier ends first */
#ifdef WITHOUT_DEADLINE
#define EXPIRE
#else
#define EXPIRE \
    :: atomic { timeout && !ALL(READY) && ALL(NOT_BEFORE_ME) -> \
           assert(fate == stalls); /* nothing else needs a deadline */ \
           expired = true; \
           culprit = FIRST(MISSING) \
       }; goto fail
#endif

/* @protocol refuse-poisoned */
#ifdef WITHOUT_REFUSING_POISONED
#define ENTER
#else
#define ENTER \
    if \
    :: atomic { failed[me] -> skip }; goto leave \
    :: atomic { !failed[me] && FIRST(TOLD) != NOBODY -> culprit = CULPRIT(status[PAIR(me, FIRST(TOLD))]) }; goto told \
    :: else \
    fi
#endif

/* @protocol keep-finding: the first thing that a rank says stays */
#ifdef WITHOUT_KEEPING_FINDING
#define SAID false
#else
#define SAID (said != 0)
#endif

#define PUSH_STATUS(finding) \
    atomic { TO_EACH_PEER(SEND_STATUS(finding)); said = finding }

#define SEND_STATUS(finding) \
    if \
    :: status_flight[PAIR(peer, me)] != 0 -> status[PAIR(peer, me)] = status_flight[PAIR(peer, me)] \
    :: else \
    fi; \
    status_flight[PAIR(peer, me)] = finding

inline read_rows() {
    for (peer : 0 .. RANKS - 1) {
        assert(peer == me || row_in[PAIR(me, peer)] == exchange)
    }
    peer = 0;
    assert(!failed[me]) /* a poisoned session is not read */
}

inline read_out() {
    for (peer : 0 .. RANKS - 1) {
        assert(row_out[peer] == exchange)
    }
    peer = 0;
    assert(!failed[me])
}

proctype rank(byte me) {
    byte exchange, kind, culprit, said, noted, peer;
    bool dispatched;

next_dispatch:
    if
    :: exchange == EXCHANGES -> goto leave
    :: me == victim && !struck && fate == leaves_early -> struck = true; goto leave
    :: else
    fi;
    ENTER;
    exchange++;
    MAY_RAISE;
    MEET(HEADER);
    MAY_RAISE;
#ifdef GRANTS
    MEET(GRANT);
    MAY_RAISE;
#endif
    MEET(ARRIVE);
    MAY_RAISE;
    atomic { dispatched = true; read_rows() }
    /* experts */
    if
    :: me == victim && !struck && fate == raises -> struck = true; culprit = me; goto fail
    :: me == victim && !struck && fate == leaves_early -> struck = true; goto leave
    :: else
    fi;
    DIE_OR_STALL;
    row_out[me] = exchange;

combine:
    ENTER;
    dispatched = false;
    MAY_RAISE;
    MEET(DONE);
    MAY_RAISE;
    DIE_OR_STALL;
    atomic { read_out(); goto next_dispatch }

found: /* a rank that is missing has ended: it says so itself, or its process descriptor does */
    if
    :: SAYS_CLOSED(status[PAIR(me, culprit)]) -> noted = 1
    :: else
    fi;
    goto fail;

told:
    if
    :: culprit == me -> /* the others gave this rank up: nothing is left to tell them */
        atomic { assert(me == victim && struck); failed[me] = true; waiting[me] = false; goto again }
    :: else
    fi;

fail:
    atomic {
        assert(struck);            /* nobody is blamed as long as nothing has happened */
        assert(culprit == victim); /* and then the right one is */
        REACHED(fate);
        failed[me] = true;
        waiting[me] = false
    }
#ifndef WITHOUT_PUSH_STATUS
    if
    :: noted == 1 -> PUSH_STATUS(CLOSED(culprit))
    :: else -> PUSH_STATUS(FINDING(culprit))
    fi;
    noted = 0;
#endif

again: /* a caller that does not take the exception seriously calls again */
    if
    :: dispatched -> goto combine
    :: else -> goto next_dispatch
    fi;

leave:
    if
    :: SAID
    :: else ->
        if
        :: PUSH_STATUS(CLOSED(me))
        :: failed[me] -> PUSH_STATUS(FINDING(me))
        fi
    fi;
    /* what a process wrote is there before it has ended */
    ALL(SENT);

dead:
    atomic { ended[me] = true; stalled[me] = false; goto over }

stays_stalled:
    skip;

over:
    skip
}

init {
    atomic {
        byte one, other;
        if
        :: fate = nothing
        :: fate = dies
        :: fate = stalls
        :: fate = raises
        :: fate = leaves_early
        fi;
        for (one : 1 .. RANKS - 1) {
            if
            :: victim = one
            :: true
            fi
        }
        for (one : 0 .. RANKS - 1) {
            run rank(one);
            for (other : 0 .. RANKS - 1) {
                if
                :: one != other -> run link(one, other)
                :: else
                fi
            }
        }
    }
}
