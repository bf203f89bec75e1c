// Runs the host kernels with ranks as threads over windows in one process, so that sanitizers see every access.
//
//   ranks_as_threads LAYOUT_FILE EXCHANGES
//
// LAYOUT_FILE holds the bytes of an ExchangeLayout as Python computed them. Every result is checked exactly: the expert
// with id e turns a row into row + e, and combine sums over k with weights that are powers of two.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "exchange.h"

namespace {

std::atomic<bool> failed{false};

void check(bool condition, const char *what, uint32_t rank, uint64_t exchange) {
    if (condition)
        return;
    failed = true;
    fprintf(stderr, "rank %u, exchange %llu: %s\n", rank, static_cast<unsigned long long>(exchange), what);
}

// Words pass the half of an epoch that status words carry.
constexpr uint64_t first_epoch = (uint64_t{1} << 32) - 50;

class Rank {
  public:
    Rank(const ExchangeLayout &layout, const std::vector<void *> &windows, uint32_t rank)
        : layout_(layout), windows_(windows), random_(17 + rank), pidfds_(layout.ranks, -1), missing_(layout.ranks),
          ended_(layout.ranks), waited_ns_(layout.ranks) {
        session_.layout = &layout_;
        session_.windows = windows_.data();
        session_.peer_pidfds = pidfds_.data();
        session_.missing = missing_.data();
        session_.ended = ended_.data();
        session_.waited_ns = waited_ns_.data();
        session_.timeout_ns = 60'000'000'000;
        session_.rank = rank;
        session_.begun = first_epoch;
    }

    void run(uint64_t exchanges) {
        for (uint64_t exchange = 0; exchange < exchanges && !failed; ++exchange) {
            if (exchange % 5 == 4)
                exchange_a_block(exchange);
            else if (exchange % 7 == 6)
                exchange_invalid_input(exchange);
            else
                exchange_rows(exchange);
        }
        exchange_leave(&session_, EXCHANGE_PEER_CLOSED, session_.step, session_.epoch);
    }

  private:
    float *rows(uint64_t region, uint32_t slot) const {
        auto *base = static_cast<uint8_t *>(windows_[session_.rank]) + region;
        return reinterpret_cast<float *>(base + slot * layout_.capacity * layout_.out_row_bytes);
    }

    ExchangeDispatch new_dispatch(uint64_t exchange) {
        ExchangeDispatch call = {};
        call.kind = exchange % 2 ? EXCHANGE_PREFILL : EXCHANGE_DECODE;
        call.tokens = random_() % (layout_.max_tokens + 1);
        x_.assign(uint64_t{layout_.max_tokens} * layout_.hidden, 0);
        for (float &value : x_)
            value = static_cast<float>(random_() % 1024);
        ids_.resize(uint64_t{layout_.max_tokens} * layout_.topk);
        for (int32_t &id : ids_)
            id = static_cast<int32_t>(random_() % (layout_.experts + 1)) - 1;
        positions_.resize(ids_.size());
        counts_.resize(layout_.experts / layout_.ranks);
        matrix_.resize(layout_.ranks * layout_.counted);
        totals_.resize(layout_.ranks);
        call.x = x_.data();
        call.x_stride = layout_.row_bytes;
        call.ids = ids_.data();
        call.ids_bytes = sizeof(int32_t);
        call.positions = positions_.data();
        call.counts = counts_.data();
        call.matrix = matrix_.data();
        call.totals = totals_.data();
        return call;
    }

    void exchange_rows(uint64_t exchange) {
        ExchangeDispatch call = new_dispatch(exchange);
        check(dispatch(call, exchange) == EXCHANGE_OK, "dispatch failed", session_.rank, exchange);
        if (failed)
            return;
        run_experts(call);
        ExchangeCombine combine = {};
        std::vector<float> weights(ids_.size()), out(x_.size());
        for (uint64_t i = 0; i < weights.size(); ++i)
            weights[i] = static_cast<float>(1 << i % layout_.topk);
        combine.positions = positions_.data();
        combine.weights = weights.data();
        combine.out = out.data();
        combine.out_stride = layout_.row_bytes;
        combine.epoch = call.epoch;
        combine.total = call.total;
        combine.tokens = call.tokens;
        combine.slot = call.slot;
        check(combine_once(combine, exchange) == EXCHANGE_OK, "combine failed", session_.rank, exchange);
        check_sums(call, out, exchange);
        if (exchange % 3 == 0) {
            check(exchange_rejoin(&session_, &combine) == EXCHANGE_OK, "rejoin failed", session_.rank, exchange);
            run_experts(call);
            check(exchange_combine(&session_, &combine) == EXCHANGE_OK, "combine 2 failed", session_.rank, exchange);
            check_sums(call, out, exchange);
        }
    }

    // In one call, or by every second rank in two.
    int dispatch(ExchangeDispatch &call, uint64_t exchange) {
        if ((exchange + session_.rank) % 2 == 0)
            return exchange_dispatch(&session_, &call);
        const int result = exchange_dispatch_send(&session_, &call);
        return result != EXCHANGE_OK ? result : exchange_dispatch_receive(&session_, &call);
    }
    int combine_once(const ExchangeCombine &call, uint64_t exchange) {
        if ((exchange + session_.rank) % 2 == 0)
            return exchange_combine(&session_, &call);
        const int result = exchange_combine_send(&session_, &call);
        return result != EXCHANGE_OK ? result : exchange_combine_receive(&session_, &call);
    }

    void run_experts(const ExchangeDispatch &call) {
        const float *in = rows(layout_.rows, call.slot);
        float *out = rows(layout_.out, call.slot);
        const uint32_t local_experts = layout_.experts / layout_.ranks;
        uint64_t element = 0;
        for (uint32_t local = 0; local < local_experts; ++local)
            for (int64_t i = 0; i < counts_[local] * layout_.hidden; ++i, ++element)
                out[element] = in[element] + static_cast<float>(session_.rank * local_experts + local);
        check(element == call.total * layout_.hidden, "counts do not add up", session_.rank, call.epoch);
    }

    void check_sums(const ExchangeDispatch &call, const std::vector<float> &out, uint64_t exchange) {
        for (uint64_t token = 0; token < call.tokens; ++token)
            for (uint64_t i = 0; i < layout_.hidden; ++i) {
                float sum = 0;
                for (uint64_t k = 0; k < layout_.topk; ++k)
                    if (const int32_t id = ids_[token * layout_.topk + k]; id >= 0)
                        sum += static_cast<float>(1 << k) * (x_[token * layout_.hidden + i] + static_cast<float>(id));
                check(sum == out[token * layout_.hidden + i], "wrong sum", session_.rank, exchange);
            }
    }

    void exchange_invalid_input(uint64_t exchange) {
        ExchangeDispatch call = new_dispatch(exchange);
        call.tokens = layout_.max_tokens;
        if (exchange % layout_.ranks == session_.rank)
            ids_[0] = static_cast<int32_t>(layout_.experts);
        check(exchange_dispatch(&session_, &call) == EXCHANGE_INVALID_INPUT, "bad id taken", session_.rank, exchange);
    }

    void exchange_a_block(uint64_t exchange) {
        std::vector<uint8_t> block(layout_.mailbox_bytes, static_cast<uint8_t>(exchange + session_.rank));
        std::vector<uint8_t> blocks(layout_.ranks * layout_.mailbox_bytes);
        std::vector<uint32_t> lengths(layout_.ranks);
        ExchangePlan call = {};
        call.block = block.data();
        call.block_bytes = static_cast<uint32_t>(1 + random_() % block.size());
        call.lengths = lengths.data();
        call.blocks = blocks.data();
        check(exchange_plan(&session_, &call) == EXCHANGE_OK, "plan failed", session_.rank, exchange);
        for (uint32_t source = 0; source < layout_.ranks; ++source)
            for (uint32_t i = 0; i < lengths[source]; ++i)
                check(blocks[source * layout_.mailbox_bytes + i] == static_cast<uint8_t>(exchange + source),
                      "wrong block", session_.rank, exchange);
    }

    const ExchangeLayout layout_;
    const std::vector<void *> windows_;
    std::mt19937 random_;
    std::vector<int32_t> pidfds_;
    std::vector<uint8_t> missing_, ended_;
    std::vector<uint64_t> waited_ns_;
    ExchangeSession session_ = {};
    std::vector<float> x_;
    std::vector<int32_t> ids_;
    std::vector<int64_t> positions_, counts_;
    std::vector<uint32_t> matrix_;
    std::vector<int64_t> totals_;
};

} // namespace

int main(int argc, char **argv) {
    ExchangeLayout layout;
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : nullptr;
    if (file == nullptr || fread(&layout, sizeof layout, 1, file) != 1 || layout.element != EXCHANGE_FP32) {
        fprintf(stderr, "usage: ranks_as_threads LAYOUT_FILE EXCHANGES (a layout of float32 rows)\n");
        return 2;
    }
    fclose(file);
    std::vector<void *> windows;
    for (uint32_t rank = 0; rank < layout.ranks; ++rank) {
        windows.push_back(aligned_alloc(EXCHANGE_LINE_BYTES, layout.total_bytes));
        memset(windows.back(), 0, layout.total_bytes);
        exchange_initialise(&layout, windows.back(), first_epoch);
    }
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < layout.ranks; ++rank)
        threads.emplace_back([&, rank] { Rank(layout, windows, rank).run(strtoull(argv[2], nullptr, 10)); });
    for (std::thread &thread : threads)
        thread.join();
    for (void *window : windows)
        free(window);
    printf("%s\n", failed ? "FAILED" : "all results exact");
    return failed ? 1 : 0;
}
