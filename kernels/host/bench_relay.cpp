// Flags in shared memory, and an exchange through relay buffers, for the benchmark.
#include <atomic>
#include <cstring>
#include <vector>

#include "bench_rows.h"
#include "bench_shape.h"
#include "waiting.h"

namespace ascend_moe {
namespace {

using Word = std::atomic<uint64_t>;

class SharedSegments {
  public:
    SharedSegments(const BenchShape &shape, const BenchSegments &segments) : shape_(shape), segments_(segments) {}

    // Tells every rank that this one has reached `value`, and waits until all have.
    bool meet(uint64_t lines, uint64_t value) const {
        for (uint32_t peer = 0; peer < shape_.ranks; ++peer)
            // release: everything that this rank wrote is seen before the word.
            word(peer, lines, shape_.rank).store(value, std::memory_order_release);
        uint32_t turns = 0;
        uint64_t started = 0;
        for (uint32_t source = 0; source < shape_.ranks; ++source)
            // acquire: pairs with the store above.
            while (word(shape_.rank, lines, source).load(std::memory_order_acquire) < value) {
                if (turns++ < spin_turns) {
                    relax();
                    continue;
                }
                const uint64_t now = now_ns();
                if (started == 0)
                    started = now;
                if (now - started > segments_.timeout_ns)
                    return false;
                rest(now - started, segments_.spin_ns);
            }
        return true;
    }

    void push_counts(const uint32_t *counts, uint64_t epoch) const {
        for (uint32_t peer = 0; peer < shape_.ranks; ++peer)
            memcpy(counts_of(peer, epoch) + shape_.rank * shape_.experts, counts, shape_.experts * sizeof(uint32_t));
    }

    const uint32_t *matrix(uint64_t epoch) const { return counts_of(shape_.rank, epoch); }

    // Where `source` puts its rows for `destination`, in the memory of the latter.
    uint8_t *block(uint64_t region, uint64_t row_bytes, uint32_t destination, uint32_t source) const {
        return segments_.segments[destination] + region + source * segments_.capacity * row_bytes;
    }

  private:
    Word &word(uint32_t rank, uint64_t lines, uint32_t source) const {
        return *reinterpret_cast<Word *>(segments_.segments[rank] + lines + source * BENCH_LINE_BYTES);
    }
    uint32_t *counts_of(uint32_t rank, uint64_t epoch) const {
        return reinterpret_cast<uint32_t *>(segments_.segments[rank] + segments_.counts) +
               (epoch & 1) * shape_.ranks * shape_.experts;
    }

    const BenchShape &shape_;
    const BenchSegments &segments_;
};

// Blocks in this rank's memory, copied into `received` one after the other if it is not null.
std::vector<const uint8_t *> take_blocks(const BenchShape &shape, const SharedSegments &shared, uint64_t region,
                                         uint64_t row_bytes, const std::vector<uint64_t> &rows, uint8_t *received) {
    std::vector<const uint8_t *> blocks(shape.ranks);
    for (uint32_t peer = 0; peer < shape.ranks; ++peer) {
        const uint8_t *block = shared.block(region, row_bytes, shape.rank, peer);
        blocks[peer] = block;
        if (received != nullptr) {
            memcpy(received, block, rows[peer] * row_bytes);
            blocks[peer] = received;
            received += rows[peer] * row_bytes;
        }
    }
    return blocks;
}

uint64_t rows_between(const BenchShape &shape, const uint32_t *matrix, uint32_t source, uint32_t destination) {
    const uint32_t local_experts = shape.experts / shape.ranks;
    uint64_t rows = 0;
    for (uint32_t local = 0; local < local_experts; ++local)
        rows += matrix[source * shape.experts + destination * local_experts + local];
    return rows;
}

} // namespace
} // namespace ascend_moe

using namespace ascend_moe;

int32_t bench_barrier(const BenchShape *shape, BenchSegments *segments) {
    return SharedSegments(*shape, *segments).meet(segments->barrier, ++segments->epoch) ? 0 : -1;
}

int32_t bench_relay_dispatch(const BenchShape *shape, BenchSegments *segments, const BenchTokens *tokens,
                             uint8_t *received, uint32_t *matrix, uint8_t *rows, float *scales) {
    const SharedSegments shared(*shape, *segments);
    const uint64_t row_bytes = packed_bytes(*shape);
    const uint64_t epoch = ++segments->epoch;
    bench_count(shape, tokens);
    shared.push_counts(tokens->counts, epoch);
    std::vector<uint8_t *> outgoing(shape->ranks);
    for (uint32_t peer = 0; peer < shape->ranks; ++peer)
        outgoing[peer] = shared.block(segments->relay, row_bytes, peer, shape->rank);
    // A place for the worst case is kept for every source, so nothing has to be known of the others before packing.
    bench_pack(shape, tokens, outgoing.data());
    if (!shared.meet(segments->arrive, epoch))
        return -1;
    memcpy(matrix, shared.matrix(epoch), shape->ranks * shape->experts * sizeof(uint32_t));
    std::vector<uint64_t> arrived(shape->ranks);
    for (uint32_t source = 0; source < shape->ranks; ++source)
        arrived[source] = rows_between(*shape, matrix, source, shape->rank);
    const auto blocks = take_blocks(*shape, shared, segments->relay, row_bytes, arrived, received);
    bench_restore(shape, matrix, blocks.data(), rows, scales);
    return 0;
}

int32_t bench_relay_combine(const BenchShape *shape, BenchSegments *segments, const BenchTokens *tokens,
                            const uint32_t *matrix, const uint8_t *out, uint8_t *received, void *result) {
    const SharedSegments shared(*shape, *segments);
    const uint64_t row_bytes = result_bytes(*shape);
    std::vector<uint8_t *> outgoing(shape->ranks);
    for (uint32_t peer = 0; peer < shape->ranks; ++peer)
        outgoing[peer] = shared.block(segments->back, row_bytes, peer, shape->rank);
    bench_return(shape, matrix, out, outgoing.data());
    if (!shared.meet(segments->done, segments->epoch))
        return -1;
    std::vector<uint64_t> returned(shape->ranks);
    for (uint32_t peer = 0; peer < shape->ranks; ++peer)
        returned[peer] = rows_between(*shape, matrix, shape->rank, peer);
    const auto blocks = take_blocks(*shape, shared, segments->back, row_bytes, returned, received);
    bench_reduce(shape, tokens, blocks.data(), result);
    return 0;
}
