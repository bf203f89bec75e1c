/* The exchange protocol: any sequence of the calls that a scenario allows, for ever, on every rank.

   -D RANKS=2|3, SLOTS=1|2, MAY_<CALL> for each call the scenario allows; FULL_FABRIC for two ranks. With HALVES the two
   slots are the halves of one window: a plan begins with the first, and MAY_DISPATCH_WHOLE takes both.
   -D GRANTS: ranks grant places for rows; otherwise each derives all places from the counts of all.
   -D SINGLE_RENDEZVOUS: a way that was explored and not taken, in which rows travel with the counts.
   -D WITHOUT_<STEP> takes a step of the code away: then a property must fail.
   A `@protocol NAME` comment stands where the code has the same one; docs/protocol-model.md lists them. */

#ifndef SLOTS
#define SLOTS 1
#endif

#include "fabric.pml"
#include "calls.pml"
#include "forgetting.pml"
#include "steps.pml"

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
               :: ROWS_LAST && call == DISPATCH && held[next] != 0 && results[next] != 0 -> read_rows(next)
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
               announce();
#ifdef SINGLE_RENDEZVOUS
               if
               :: !PLANS(call, me) && !REFUSES(call, me) -> slot = next; place_rows()
               :: else
               fi
#endif
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
#ifdef GRANTS
               atomic { push_grants(); skip }
               atomic { wait_grants(); skip }
               atomic { read_grants(); use_up_grants() }
#endif
               if
               :: FITS ->
#ifdef SINGLE_RENDEZVOUS
                   d_step { take_slot() }
#else
                   atomic { take_slot(); place_rows() }
#endif
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
