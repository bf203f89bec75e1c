#include "exchange.h"

void exchange_cut_segments(const int64_t *positions, uint32_t tokens, uint32_t topk, uint32_t count, uint32_t *bounds) {
    uint64_t total = 0;
    for (uint64_t index = 0; index < uint64_t{tokens} * topk; ++index)
        total += positions[index] >= 0;
    uint64_t routed = 0;
    uint32_t next = 0;
    for (uint32_t token = 0; token < tokens; ++token) {
        while (next < count && routed * count >= total * next)
            bounds[next++] = token;
        for (uint32_t k = 0; k < topk; ++k)
            routed += positions[uint64_t{token} * topk + k] >= 0;
    }
    while (next <= count)
        bounds[next++] = tokens;
}
