// What this process has had the emulated NPU do, by name: operators, launches, copies, allocations, waits of the host.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace emulated_npu {

struct Counted {
    uint64_t calls = 0;
    uint64_t bytes = 0;
};

void count(const std::string &name, uint64_t bytes = 0);
std::map<std::string, Counted> counted();

} // namespace emulated_npu
