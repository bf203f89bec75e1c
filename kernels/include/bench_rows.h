// Row movements of the paths that the benchmark compares the exchange with; the exchange itself uses none of them.
//
// Bound by launch/bench/row_kernels.py. Rows are packed by destination rank, moved as a block, and put in order where
// they arrive; on the way back the mirror image. All of it with the row kernels that the exchange uses.
#ifndef ASCEND_MOE_BENCH_ROWS_H
#define ASCEND_MOE_BENCH_ROWS_H

#include <stdint.h>

#define BENCH_LINE_BYTES 64u
#define BENCH_SCALE_BYTES 16u // after the values of a packed int8 row: its scale, and padding

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct BenchShape {
    uint32_t ranks;
    uint32_t rank;
    uint32_t experts; // of all ranks
    uint32_t topk;
    uint32_t hidden;
    uint32_t element;   // ExchangeElement of x and of results
    uint32_t quantised; // 1: rows travel as int8 with a scale each, results in the element type
    uint32_t streaming; // 1: stores past the caches where rows are packed and copied
} BenchShape;

// What one rank brings, and where its rows went.
typedef struct BenchTokens {
    const void *x;        // [tokens, hidden], dense
    const int64_t *ids;   // [tokens, topk], -1 = not routed
    const float *weights; // [tokens, topk]
    int64_t *positions;   // [tokens, topk]: destination rank << 32 | place among the rows sent there; -1
    uint32_t *counts;     // [experts]
    uint32_t tokens;
} BenchTokens;

// Counts the ids of each expert into tokens->counts.
void bench_count(const BenchShape *shape, const BenchTokens *tokens);

// Writes each routed row into the block of its destination, blocks[ranks], in (expert, token, k) order.
void bench_pack(const BenchShape *shape, const BenchTokens *tokens, uint8_t *const *blocks);

// Quantises x row by row, as an exchange does it: values [tokens, hidden], scales [tokens].
void bench_quantise(const BenchShape *shape, const BenchTokens *tokens, int8_t *values, float *scales);

// Puts rows that arrived in blocks[ranks], each in local expert order, into (local expert, source) order. `matrix`
// [ranks, experts] holds the counts of every source. `scales` is used only if quantised.
void bench_restore(const BenchShape *shape, const uint32_t *matrix, const uint8_t *const *blocks, uint8_t *rows,
                   float *scales);

// The way back: results in (local expert, source) order into one block for each source, in local expert order.
void bench_return(const BenchShape *shape, const uint32_t *matrix, const uint8_t *out, uint8_t *const *blocks);

// Sums up each token's results, which came back in blocks[ranks]; the same arithmetic as the exchange.
void bench_reduce(const BenchShape *shape, const BenchTokens *tokens, const uint8_t *const *blocks, void *result);

// Stands in for the experts: reads every row and writes its value, dequantised, as the result.
void bench_experts(const BenchShape *shape, const uint8_t *rows, const float *scales, uint64_t scale_stride,
                   uint64_t total, uint8_t *out);

// Flags and counts of ranks that share memory. Every rank has one segment, laid out alike.
typedef struct BenchSegments {
    uint8_t *const *segments; // [ranks]
    uint64_t timeout_ns;
    uint64_t spin_ns;  // for which a wait keeps its core before others may have it
    uint64_t barrier;  // offset of [ranks] lines
    uint64_t arrive;   // offset of [ranks] lines
    uint64_t done;     // offset of [ranks] lines
    uint64_t counts;   // offset of [2][ranks][experts] u32, parity of the epoch first
    uint64_t relay;    // offset of [ranks][capacity] packed rows, on their way to experts
    uint64_t back;     // offset of [ranks][capacity] results, on their way back
    uint64_t capacity; // rows that one rank can send to another
    uint64_t epoch;    // barriers or exchanges so far; advanced by the calls
} BenchSegments;

// Returns 0 once every rank has called it, -1 after the timeout. So do the two below.
int32_t bench_barrier(const BenchShape *shape, BenchSegments *segments);

// An exchange through relay buffers in shared memory: packed into the receiver's relay buffer, flags, copied out into
// `received`, put in order. With `received` null the copy is left out: rows are put in order out of the relay buffer.
// `matrix` [ranks, experts] receives the counts of every source.
int32_t bench_relay_dispatch(const BenchShape *shape, BenchSegments *segments, const BenchTokens *tokens,
                             uint8_t *received, uint32_t *matrix, uint8_t *rows, float *scales);
int32_t bench_relay_combine(const BenchShape *shape, BenchSegments *segments, const BenchTokens *tokens,
                            const uint32_t *matrix, const uint8_t *out, uint8_t *received, void *result);

enum BenchStore { BENCH_MEMCPY = 0, BENCH_REP_MOVSB = 1, BENCH_STREAM_AVX2 = 2, BENCH_STREAM_AVX512 = 3 };

typedef struct BenchPiece {
    uint8_t *to;
    const uint8_t *from;
    uint64_t bytes;
} BenchPiece;

// Whether this processor has the store.
int32_t bench_store_available(uint32_t store);

// Copies the pieces one after the other, and is done when other processors can see all of them.
void bench_copy(uint32_t store, const BenchPiece *pieces, uint32_t count);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
