#include "row_kernels.h"

#include <atomic>
#include <cstring>

namespace ascend_moe {
namespace {

struct Candidate {
    const RowKernels *kernels;
    bool available;
};

// Widest first.
const Candidate *candidates() {
    static const Candidate list[] = {
#if defined(__x86_64__)
        {&avx512_kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("f16c")},
        {&avx2_kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")},
#endif
        {&portable_kernels, true},
        {nullptr, false},
    };
    return list;
}

std::atomic<const RowKernels *> selected{nullptr};

const RowKernels *find(const char *name) {
    for (const Candidate *candidate = candidates(); candidate->kernels != nullptr; ++candidate)
        if (candidate->available && (name == nullptr || strcmp(candidate->kernels->name, name) == 0))
            return candidate->kernels;
    return nullptr;
}

} // namespace

const RowKernels &row_kernels() {
    // relaxed: the tables are constants, and any of them is right.
    const RowKernels *kernels = selected.load(std::memory_order_relaxed);
    if (kernels == nullptr) {
        kernels = find(nullptr);
        selected.store(kernels, std::memory_order_relaxed);
    }
    return *kernels;
}

} // namespace ascend_moe

int32_t exchange_select_kernels(const char *name) {
    const ascend_moe::RowKernels *kernels = ascend_moe::find(name);
    if (kernels == nullptr)
        return -1;
    ascend_moe::selected.store(kernels, std::memory_order_relaxed);
    return 0;
}

const char *exchange_selected_kernels() { return ascend_moe::row_kernels().name; }
