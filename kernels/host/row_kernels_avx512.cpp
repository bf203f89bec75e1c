// Row kernels for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "elements.h"
#include "row_kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,prfchw,prefer-vector-width=512")

#define ROW_KERNELS avx512_kernels
#define ROW_KERNELS_NAME "avx512"
#define ROW_KERNELS_VECTOR_BYTES 64
#define ROW_KERNELS_STREAM(place, source)                                                                              \
    _mm512_stream_si512(reinterpret_cast<__m512i *>(place), _mm512_loadu_si512(source))
#define ROW_KERNELS_LOAD_HALVES(from)                                                                                  \
    _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)))
#define ROW_KERNELS_STORE_HALVES(to, floats)                                                                           \
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to),                                                               \
                        _mm512_maskz_cvtps_ph(0xffff, floats, _MM_FROUND_TO_NEAREST_INT))
#include "row_kernels_impl.h"
#endif
