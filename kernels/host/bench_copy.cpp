// Plain copies with every kind of store, the benchmark's lower bound.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bench_rows.h"

namespace {

#if defined(__x86_64__)
void copy_rep_movsb(uint8_t *to, const uint8_t *from, uint64_t bytes) {
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

// Copies all but what lies before the first and behind the last aligned `Width` bytes with stream(to, from).
template <uint64_t Width, class Stream>
__attribute__((always_inline)) inline void copy_streaming(uint8_t *to, const uint8_t *from, uint64_t bytes,
                                                          Stream stream) {
    const uint64_t head = std::min(bytes, (Width - reinterpret_cast<uintptr_t>(to) % Width) % Width);
    memcpy(to, from, head);
    uint64_t offset = head;
    for (; offset + Width <= bytes; offset += Width)
        stream(to + offset, from + offset);
    memcpy(to + offset, from + offset, bytes - offset);
}

__attribute__((target("avx2"))) void copy_avx2(uint8_t *to, const uint8_t *from, uint64_t bytes) {
    copy_streaming<32>(to, from, bytes, [](uint8_t *place, const uint8_t *source) __attribute__((target("avx2"))) {
        _mm256_stream_si256(reinterpret_cast<__m256i *>(place),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(source)));
    });
}

__attribute__((target("avx512f"))) void copy_avx512(uint8_t *to, const uint8_t *from, uint64_t bytes) {
    copy_streaming<64>(to, from, bytes, [](uint8_t *place, const uint8_t *source) __attribute__((target("avx512f"))) {
        _mm512_stream_si512(reinterpret_cast<__m512i *>(place), _mm512_loadu_si512(source));
    });
}
#endif

void copy_memcpy(uint8_t *to, const uint8_t *from, uint64_t bytes) { memcpy(to, from, bytes); }

using Copy = void (*)(uint8_t *to, const uint8_t *from, uint64_t bytes);

// Null: this processor has not that store.
Copy copy_with(uint32_t store) {
    switch (store) {
    case BENCH_MEMCPY:
        return copy_memcpy;
#if defined(__x86_64__)
    case BENCH_REP_MOVSB:
        return copy_rep_movsb;
    case BENCH_STREAM_AVX2:
        return __builtin_cpu_supports("avx2") ? copy_avx2 : nullptr;
    case BENCH_STREAM_AVX512:
        return __builtin_cpu_supports("avx512f") ? copy_avx512 : nullptr;
#endif
    default:
        return nullptr;
    }
}

} // namespace

int32_t bench_store_available(uint32_t store) { return copy_with(store) != nullptr; }

void bench_copy(uint32_t store, const BenchPiece *pieces, uint32_t count) {
    const Copy copy = copy_with(store);
    for (uint32_t piece = 0; piece < count; ++piece)
        copy(pieces[piece].to, pieces[piece].from, pieces[piece].bytes);
#if defined(__x86_64__)
    // Streaming stores are not ordered before later ones otherwise.
    _mm_sfence();
#endif
}
