#include "routing.h"

uint32_t exchange_count_chunks(const ExchangeLayout *layout, const void *ids, uint32_t ids_bytes, uint32_t tokens,
                               uint32_t chunk_tokens, uint32_t *rows, int64_t *detail) {
    return ascend_moe::count_chunks(*layout, {ids, ids_bytes}, tokens, chunk_tokens, rows, *detail);
}
