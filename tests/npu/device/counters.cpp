#include "counters.h"

#include <mutex>

namespace emulated_npu {
namespace {

std::mutex mutex;
std::map<std::string, Counted> &all() {
    static auto *counters = new std::map<std::string, Counted>;
    return *counters;
}

} // namespace

void count(const std::string &name, uint64_t bytes) {
    const std::lock_guard lock(mutex);
    Counted &counter = all()[name];
    ++counter.calls;
    counter.bytes += bytes;
}

std::map<std::string, Counted> counted() {
    const std::lock_guard lock(mutex);
    return all();
}

} // namespace emulated_npu
