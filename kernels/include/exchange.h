// The C ABI between the Python package and the native kernels, host and Ascend alike.
//
// Offsets are computed once, by sglang_ascend_moe/windows/layout.py, and handed over in ExchangeLayout. kernels/python
// makes Python types of these structs. The protocol is described in docs/architecture.md.
#ifndef ASCEND_MOE_EXCHANGE_H
#define ASCEND_MOE_EXCHANGE_H

#include <stdint.h>

#define EXCHANGE_ABI_VERSION 8u

#define EXCHANGE_LINE_BYTES 64u // no two writers share a line
#define EXCHANGE_UNIT_BYTES 32u // a sequence word and 24 bytes of payload
#define EXCHANGE_COUNTS_PER_UNIT 6u
#define EXCHANGE_REFUSAL_BYTES 256u // longest text with which a rank refuses its own arguments

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum ExchangeElement { EXCHANGE_BF16 = 0, EXCHANGE_FP16 = 1, EXCHANGE_FP32 = 2 };

// The tag of the words of an exchange: ranks that do different things find out at the header.
enum ExchangeKind { EXCHANGE_DECODE = 1, EXCHANGE_PREFILL = 2, EXCHANGE_PLAN = 3 };

enum ExchangeStep {
    EXCHANGE_STEP_NONE = 0,
    EXCHANGE_STEP_ANNOUNCE = 1,
    EXCHANGE_STEP_COUNTS = 2,
    EXCHANGE_STEP_PLACE = 3,
    EXCHANGE_STEP_ARRIVALS = 4,
    EXCHANGE_STEP_EXPERTS = 5,
    EXCHANGE_STEP_DONE = 6,
    EXCHANGE_STEP_REDUCE = 7,
    EXCHANGE_STEP_REJOIN = 8,
    EXCHANGE_STEP_VERIFY = 9
};

// Results of every function below. The codes from PEER_LOST on poison the session.
enum ExchangeResult {
    EXCHANGE_OK = 0,
    EXCHANGE_INVALID_INPUT = 1,
    EXCHANGE_WINDOW_TOO_SMALL = 2,
    EXCHANGE_MISMATCH = 3,
    EXCHANGE_PEER_LOST = 4,
    EXCHANGE_PEER_TIMEOUT = 5,
    EXCHANGE_PEER_FAILED = 6,
    EXCHANGE_PEER_CLOSED = 7,
    EXCHANGE_POISONED = 8,
    EXCHANGE_CORRUPTION = 9
};

// Which rows of its slot an exchange uses. Halves let the rows of one round arrive while those of another are computed.
enum ExchangePart { EXCHANGE_WHOLE = 0, EXCHANGE_FIRST_HALF = 1, EXCHANGE_SECOND_HALF = 2 };

// Why a rank's input is invalid; travels in its header unit.
enum ExchangeInputError {
    EXCHANGE_INPUT_OK = 0,
    EXCHANGE_INPUT_ARGUMENT = 1,       // a dtype or a shape; the text is in the mailbox, detail = its bytes, at least 1
    EXCHANGE_INPUT_TOKENS = 2,         // more tokens than max_tokens; detail = tokens
    EXCHANGE_INPUT_EXPERT_ID = 3,      // an id outside -1 .. experts-1; detail = id
    EXCHANGE_INPUT_REPEATED_EXPERT = 4 // distinct_topk was promised; detail = id
};

// Where a word or row lies that is not what its writer put there.
enum ExchangeRegion {
    EXCHANGE_REGION_NONE = 0,
    EXCHANGE_REGION_STATE = 1,
    EXCHANGE_REGION_STATUS = 2,
    EXCHANGE_REGION_RECORDS = 3,
    EXCHANGE_REGION_MAILBOXES = 4,
    EXCHANGE_REGION_ARRIVE = 5,
    EXCHANGE_REGION_DONE = 6,
    EXCHANGE_REGION_ROWS = 7,
    EXCHANGE_REGION_OUT = 8,
    EXCHANGE_REGION_GRANTS = 9
};

// Where everything lies in a window. Offsets in bytes from its base; every window has the same layout.
typedef struct ExchangeLayout {
    uint32_t abi_version;
    uint32_t ranks;
    uint32_t experts;
    uint32_t hidden;
    uint32_t topk;
    uint32_t max_tokens;
    uint32_t slots;
    uint32_t element;       // ExchangeElement
    uint32_t distinct_topk; // 1: a token names an expert at most once
    uint32_t count_units;   // units per source after its header unit, and of a grant after its own
    uint32_t verify;        // 1: rows travel with checksums, which are compared before rows are used
    uint32_t quantised;     // 1: rows are placed as int8 with a scale each, results stay of the element type
    uint32_t granting;      // 1: a rank gets the counts of its own experts only, and grants places; 0: it gets all
    uint32_t counted;       // experts of which a record has counts
    uint64_t capacity;      // rows per slot
    uint64_t expert_rows;   // from the first row of an expert to that of the next; 0: experts lie without gaps
    uint64_t row_bytes;     // of a placed row
    uint64_t out_row_bytes; // of a result
    uint64_t mailbox_bytes; // per source and parity
    uint64_t state;         // line 0: ExchangeState; line 1 + 2 * slot + half: PartState
    uint64_t status;        // [ranks] lines, pushed by the source
    uint64_t records;       // [2][ranks][1 + count_units] units, parity of the epoch first
    uint64_t grants;        // [ranks][1 + count_units] units, pushed by the rank that grants; none if not granting
    uint64_t mailboxes;     // [2][ranks] mailbox_bytes
    uint64_t arrive;        // [slots][2 halves][ranks] lines; the whole slot uses those of the first half
    uint64_t done;          // [slots][2 halves][ranks] lines
    uint64_t rows;          // [slots][capacity] rows
    uint64_t scales;        // [slots][capacity] lines: a float, the scale, if quantised; then a u32, the token that the
                            // row is of, if expert_rows; none if neither
    uint64_t out;           // [slots][capacity] results
    uint64_t row_checks;    // [slots][capacity] u64, written with the row by its source; only if verify
    uint64_t out_checks;    // [slots][capacity] u64, written by the owner before its done word; only if verify
    uint64_t total_bytes;
} ExchangeLayout;

// What went wrong, for the message that Python raises.
typedef struct ExchangeFault {
    uint32_t result;  // ExchangeResult
    uint32_t culprit; // rank; of a corruption the one whose word or row it is
    uint32_t step;    // ExchangeStep in which this rank was
    uint32_t cause;   // ExchangeInputError, the other rank's ExchangeKind, or the first ExchangeResult of a poison
    uint64_t epoch;
    int64_t detail;  // offending value, rows needed, or the row whose checksum differs
    uint32_t region; // ExchangeRegion of a corruption
    uint32_t reserved;
} ExchangeFault;

// The interpreter that calls the kernels: they let it run other threads meanwhile, and ask it in long waits whether a
// signal wants to end the call. All null: there is none.
typedef struct ExchangeInterpreter {
    void *(*release)(void);
    void (*acquire)(void *released);
    int (*check_signals)(void); // with the interpreter acquired; not 0: the call must end, an exception is set
} ExchangeInterpreter;

// A step of this rank. Times are those of CLOCK_MONOTONIC.
typedef struct ExchangeTraceEvent {
    uint64_t begin_ns;
    uint64_t end_ns; // 0: it has not ended; experts end where step done of their epoch begins
    uint64_t epoch;
    uint64_t waited_ns; // for which it was held up by others
    uint64_t rows;      // placed, or received
    uint64_t bytes;     // moved
    int32_t waited_for; // the rank that came last; -1: nobody held it up
    int32_t layer;      // that the exchange of this epoch is of; -1: not said
    uint32_t step;      // ExchangeStep; none: only the layer is told
    uint32_t kind;      // ExchangeKind; 0: not said
} ExchangeTraceEvent;

// A ring of `capacity` events, which follow it in memory; number n lies at n % capacity.
typedef struct ExchangeTrace {
    uint64_t capacity;
    uint64_t begun; // events so far, those that were overwritten included
    uint64_t lost;  // further ones that a device overwrote before they were fetched
    uint64_t reserved[5];
} ExchangeTrace;

// One rank's view of an open exchange. Not thread-safe: one call at a time.
typedef struct ExchangeSession {
    const ExchangeLayout *layout;
    void *const *windows;       // [ranks] base addresses as mapped in this process
    const int32_t *peer_pidfds; // [ranks] readable once the peer is gone: pidfds, connections; -1: not watched
    uint8_t *missing;           // [ranks] out: 1 for each rank that a failed wait was still waiting for
    uint8_t *ended;             // [ranks] scratch of the waits
    uint64_t *waited_ns;        // [ranks] added to: time for which this rank was held up by each
    int32_t (*on_step)(void *watcher, uint32_t step); // called as each step begins, may be null; not 0: give up
    void *watcher;
    ExchangeTrace *trace; // where the steps of calls are written down; null: nowhere
    ExchangeInterpreter interpreter;
    uint64_t timeout_ns; // of each wait
    uint32_t workers;    // threads that place and reduce large payloads; 1: only the calling one
    uint32_t spin_ns;    // for which a wait keeps its core before others may have it
    uint32_t rank;
    uint32_t step;  // out: the last step begun
    uint64_t epoch; // out: that of the last call
    uint64_t begun; // exchanges begun, those before this session included: what the host compares its window with
    ExchangeFault fault;
    uint8_t refusal[EXCHANGE_REFUSAL_BYTES]; // out, with EXCHANGE_INPUT_ARGUMENT: fault.detail bytes of UTF-8
} ExchangeSession;

typedef struct ExchangeDispatch {
    const void *x;      // [tokens] rows of hidden elements
    uint64_t x_stride;  // bytes from row to row
    const void *ids;    // [tokens, topk] int32 or int64, contiguous; -1 = not routed
    uint32_t ids_bytes; // 4 or 8
    uint32_t tokens;
    uint32_t kind;      // EXCHANGE_DECODE or EXCHANGE_PREFILL
    uint32_t part;      // ExchangePart
    uint32_t continues; // 1: stays in the slot of the dispatch before, as a further round of the same call
    uint32_t slot;      // out
    int64_t *positions; // out [tokens, topk]: destination rank << 32 | row, or -1
    int64_t *counts;    // out [local experts]: rows of each in this rank's window
    uint32_t *matrix;   // out [ranks, counted]: counts of every source, if granting those of this rank's experts
    int64_t *totals;    // out [ranks]: rows in every rank's window; only if granting, else null
    // [tokens, topk], contiguous, of the combine to come; null: the caller keeps them, which kernels of devices want
    const float *weights;
    float *kept_weights; // out: a copy of them
    uint64_t epoch;      // out
    uint64_t first_row;  // out: where this part begins in the slot
    uint64_t total;      // out: rows in this rank's window, from first_row on
    uint64_t row_bytes;  // moved of each row of x, a multiple of 16, where every rank moves less than all; else 0
} ExchangeDispatch;

typedef struct ExchangeCombine {
    const int64_t *positions; // [tokens, topk] as dispatch left them
    const float *weights;     // [tokens, topk], contiguous
    void *out;                // [tokens] rows of hidden elements
    uint64_t out_stride;      // bytes from row to row
    uint64_t epoch;           // of the dispatch
    uint64_t first_row;
    uint64_t total; // rows in this rank's window, from first_row on
    uint32_t tokens;
    uint32_t slot;
    uint32_t part;
    uint32_t layer; // of the model, counted from 1, for a device whose steps are written down; 0: not said
} ExchangeCombine;

typedef struct ExchangePlan {
    const uint8_t *block; // this rank's serialised block
    uint32_t block_bytes; // at most layout.mailbox_bytes
    uint32_t tokens;
    uint32_t input_error; // ExchangeInputError found by the caller
    uint32_t reserved;
    int64_t detail;
    uint32_t *lengths; // out [ranks]: bytes of each rank's block
    uint8_t *blocks;   // out [ranks, mailbox_bytes]
} ExchangePlan;

uint32_t exchange_abi_version(void);

// Row kernels by instruction set: "portable", "avx2", "avx512". Null selects the widest that the processor has, which
// is also what runs if nothing was selected. Returns -1 if the processor has not that one. Results are equal with all.
int32_t exchange_select_kernels(const char *name);
const char *exchange_selected_kernels(void);

// Prepares this rank's own window, before any peer maps it: zero words, `first_epoch` exchanges behind it.
void exchange_initialise(const ExchangeLayout *layout, void *window, uint64_t first_epoch);

// Why these kernels cannot serve windows of this layout, with the parameter to change; null: they can. Only libraries
// whose kernels have limits of their own export it; every rank asks before its window is prepared.
const char *exchange_refuse_layout(const ExchangeLayout *layout);

// Steps announce to arrivals. On EXCHANGE_OK the experts may read rows[slot] and write out[slot].
int exchange_dispatch(ExchangeSession *session, ExchangeDispatch *call);

// The two parts of a dispatch, between which the caller may do anything else, calls of other slots included: announce
// to place, after which x may change, and arrivals.
int exchange_dispatch_send(ExchangeSession *session, ExchangeDispatch *call);
int exchange_dispatch_receive(ExchangeSession *session, const ExchangeDispatch *call);

// Rendezvous before a second combine of the same dispatch: on EXCHANGE_OK no rank reads out[slot] any more.
int exchange_rejoin(ExchangeSession *session, const ExchangeCombine *call);

// Steps done and reduce.
int exchange_combine(ExchangeSession *session, const ExchangeCombine *call);

// The two parts of a combine, as those of a dispatch: done without its wait, after which out[slot] stays as it is, and
// the wait and reduce.
int exchange_combine_send(ExchangeSession *session, const ExchangeCombine *call);
int exchange_combine_receive(ExchangeSession *session, const ExchangeCombine *call);

// An exchange of serialised blocks instead of rows.
int exchange_plan(ExchangeSession *session, ExchangePlan *call);

// An exchange of `kind` that this rank refuses, for its own arguments are wrong: `text` of 1 to
// EXCHANGE_REFUSAL_BYTES bytes says why. Never returns EXCHANGE_OK; EXCHANGE_INVALID_INPUT on every rank unless worse
// happens.
int exchange_refuse(ExchangeSession *session, uint32_t kind, const uint8_t *text, uint32_t text_bytes);

// Tells every rank that this one, at `step` of `epoch`, cannot go on (EXCHANGE_PEER_FAILED) or leaves
// (EXCHANGE_PEER_CLOSED). The only function that may be called while another thread is in a call of the session: that
// call then ends. Nothing that such a call writes into the session is read.
void exchange_leave(const ExchangeSession *session, uint32_t result, uint32_t step, uint64_t epoch);

// Cuts tokens into `count` ranges with equally many routed rows, one per worker: bounds [count + 1] receives where each
// begins and the last ends. `positions` [tokens, topk]: negative = not routed.
void exchange_cut_segments(const int64_t *positions, uint32_t tokens, uint32_t topk, uint32_t count, uint32_t *bounds);

// Rows per destination rank and chunk: `rows` [chunks, ranks] receives how many (token, k) of tokens
// [c * chunk_tokens, (c + 1) * chunk_tokens) go to each rank. Returns an ExchangeInputError, its value in *detail.
uint32_t exchange_count_chunks(const ExchangeLayout *layout, const void *ids, uint32_t ids_bytes, uint32_t tokens,
                               uint32_t chunk_tokens, uint32_t *rows, int64_t *detail);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
