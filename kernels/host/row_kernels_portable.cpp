// Row kernels for the least that the compiler targets: SSE2 on x86-64, NEON on aarch64.
#define ROW_KERNELS portable_kernels
#define ROW_KERNELS_NAME "portable"
#define ROW_KERNELS_VECTOR_BYTES 16
#include "row_kernels_impl.h"
