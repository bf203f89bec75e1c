#include "torch_queue.h"

#include <map>
#include <mutex>

#include "emulated_npu.h"

namespace torch_queue {
namespace {

thread_local bool in_order = false;

std::mutex mutex;
// How much had been put on a stream when everything on it was there for certain.
std::map<void *, uint64_t> &certain() {
    static auto *streams = new std::map<void *, uint64_t>;
    return *streams;
}

} // namespace

int run_in_order(const std::function<int()> &launch) {
    in_order = true;
    const int result = launch();
    in_order = false;
    return result;
}

void empty(void *stream) {
    const std::lock_guard lock(mutex);
    certain()[stream] = emulated_npu_put_so_far(stream);
}

bool is_overtaken(void *stream) {
    const std::lock_guard lock(mutex);
    return !in_order && emulated_npu_put_so_far(stream) > certain()[stream];
}

void note_put(void *stream) {
    // In the order of torch's launches, it is one of them.
    if (!in_order)
        empty(stream);
}

} // namespace torch_queue
