// Row kernels for AVX2. What is included before the pragma is compiled for every processor.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "elements.h"
#include "row_kernels.h"

#pragma GCC target("avx2,f16c,prfchw")

#define ROW_KERNELS avx2_kernels
#define ROW_KERNELS_NAME "avx2"
#define ROW_KERNELS_VECTOR_BYTES 32
#define ROW_KERNELS_STREAM(place, source)                                                                              \
    _mm256_stream_si256(reinterpret_cast<__m256i *>(place),                                                            \
                        _mm256_loadu_si256(reinterpret_cast<const __m256i *>(source)))
#define ROW_KERNELS_LOAD_HALVES(from) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)))
#define ROW_KERNELS_STORE_HALVES(to, floats)                                                                           \
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT))
#include "row_kernels_impl.h"
#endif
