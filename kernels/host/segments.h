// Large payloads are divided among worker threads by ranges of tokens that move equally many rows.
#pragma once

#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "session.h"

namespace ascend_moe {

// Bytes from which it pays to start threads.
constexpr uint64_t worker_bytes = 1 << 20;

// Bounds of the segments of `tokens` tokens: one per worker for payloads that are worth it, else one.
inline std::vector<uint32_t> segment_bounds(const Session &session, const int64_t *positions, uint32_t tokens) {
    const ExchangeLayout &layout = session.layout();
    const bool large = uint64_t{tokens} * layout.topk * layout.row_bytes >= worker_bytes;
    const uint32_t count = large && session.workers() > 1 ? session.workers() : 1;
    std::vector<uint32_t> bounds(count + 1);
    exchange_cut_segments(positions, tokens, layout.topk, count, bounds.data());
    return bounds;
}

// Joins its threads when it goes. Not std::jthread, which counts its stop tokens too.
struct Threads {
    std::vector<std::thread> running;
    ~Threads() {
        for (std::thread &thread : running)
            thread.join();
    }
};

// Runs work(begin, end) for every segment, each on a thread of its own but the first. Where the system gives no more
// threads the calling one does their work. Whatever happens, the threads have ended when this does.
template <class Work> void run_segments(const std::vector<uint32_t> &bounds, Work work) {
    Threads threads;
    threads.running.reserve(bounds.size());
    size_t started = 1;
    try {
        for (; started + 1 < bounds.size(); ++started)
            threads.running.emplace_back(work, bounds[started], bounds[started + 1]);
    } catch (const std::system_error &) {
        for (size_t rest = started; rest + 1 < bounds.size(); ++rest)
            work(bounds[rest], bounds[rest + 1]);
    }
    work(bounds[0], bounds[1]);
}

} // namespace ascend_moe
