// Counts how often the host kernels access memory, and which bytes of chosen memory they read and write. The kernels
// are compiled as for ThreadSanitizer, which makes the compiler call a function at every access; here are these
// functions, in place of the sanitizer's.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Region {
    uint64_t begin;
    uint64_t end;
    uint8_t *reads;  // [end - begin]: how often each byte was read
    uint8_t *writes; // [end - begin]
};

std::vector<Region> regions;
std::atomic<uint64_t> accesses;

void count(const void *address, uint64_t bytes, bool write) {
    accesses.fetch_add(1, std::memory_order_relaxed);
    const auto begin = reinterpret_cast<uint64_t>(address);
    for (const Region &region : regions)
        for (uint64_t byte = begin; byte < begin + bytes; ++byte)
            if (byte >= region.begin && byte < region.end)
                ++(write ? region.writes : region.reads)[byte - region.begin];
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

void count_in(uint64_t begin, uint64_t bytes, uint8_t *reads, uint8_t *writes) {
    regions.push_back({begin, begin + bytes, reads, writes});
}
void count_nowhere() { regions.clear(); }
// Since the last call.
uint64_t take_accesses() { return accesses.exchange(0, std::memory_order_relaxed); }

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_read_range(void *address, uint64_t bytes) { count(address, bytes, false); }
void __tsan_write_range(void *address, uint64_t bytes) { count(address, bytes, true); }

#define COUNT_ACCESSES(bytes)                                                                                          \
    void __tsan_read##bytes(void *address) { count(address, bytes, false); }                                           \
    void __tsan_write##bytes(void *address) { count(address, bytes, true); }                                           \
    void __tsan_unaligned_read##bytes(void *address) { count(address, bytes, false); }                                 \
    void __tsan_unaligned_write##bytes(void *address) { count(address, bytes, true); }
COUNT_ACCESSES(1)
COUNT_ACCESSES(2)
COUNT_ACCESSES(4)
COUNT_ACCESSES(8)
COUNT_ACCESSES(16)

// Words are in no region that is counted. What the kernels ask for is done with the strongest order.
uint8_t __tsan_atomic8_load(const volatile uint8_t *guard, int) { return __atomic_load_n(guard, __ATOMIC_SEQ_CST); }
uint64_t __tsan_atomic64_load(const volatile uint64_t *word, int) {
    accesses.fetch_add(1, std::memory_order_relaxed);
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}
void __tsan_atomic64_store(volatile uint64_t *word, uint64_t value, int) {
    accesses.fetch_add(1, std::memory_order_relaxed);
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}
uint64_t __tsan_atomic64_fetch_add(volatile uint64_t *word, uint64_t value, int) {
    accesses.fetch_add(1, std::memory_order_relaxed);
    return __atomic_fetch_add(word, value, __ATOMIC_SEQ_CST);
}

// Calls of these reach here by the linker's --wrap.
void *__real_memcpy(void *to, const void *from, size_t bytes);
void *__real_memset(void *to, int value, size_t bytes);
void *__real_memmove(void *to, const void *from, size_t bytes);
void *__wrap_memcpy(void *to, const void *from, size_t bytes) {
    count(from, bytes, false);
    count(to, bytes, true);
    return __real_memcpy(to, from, bytes);
}
void *__wrap_memmove(void *to, const void *from, size_t bytes) {
    count(from, bytes, false);
    count(to, bytes, true);
    return __real_memmove(to, from, bytes);
}
void *__wrap_memset(void *to, int value, size_t bytes) {
    count(to, bytes, true);
    return __real_memset(to, value, bytes);
}
}
#pragma GCC visibility pop
