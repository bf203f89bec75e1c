/* What the callers on all ranks do: any sequence of the calls that the scenario allows, the same on every rank. */

/* The next calls. Decided by the first rank that gets there, taken by all. */
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
