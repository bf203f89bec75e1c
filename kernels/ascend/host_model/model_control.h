// What tests ask of the model beside the C ABI of the exchange.
#pragma once

#include <cstdint>

#include "device.h"
#include "exchange.h"

extern "C" {
#pragma GCC visibility push(default)

// Cores that the kernels of this process run on from now on.
void ascend_model_use_cores(uint32_t cores);

// Bytes of the unified buffer that dispatch and combine are said to need for this layout.
void ascend_model_buffers(const ExchangeLayout *layout, uint64_t *bytes);

// The first rule that a kernel broke, or an empty text. After one, no kernel runs.
const char *ascend_model_violation();

// What the last kernel cost each core; returns their number.
uint32_t ascend_model_costs(ascend_model::CoreCosts *costs, uint32_t cores);

// An exchange of all ranks on the machine of modelled time (machine.h): decode or prefill, bf16 rows of ones.
struct ModelledExchange {
    const ExchangeLayout *layout;
    const int64_t *ids; // [ranks, tokens, topk]
    uint32_t cores;
    uint32_t tokens;                   // of each rank
    uint32_t kind;                     // ExchangeKind
    uint32_t timed;                    // 1: launches leave the times of their steps
    ascend_model::CoreCosts *dispatch; // out [ranks, cores]
    ascend_model::CoreCosts *combine;  // out [ranks, cores]
    double *sent;                      // out [2 kernels, ranks]: bytes out of the link of each
};
// Returns what went wrong, or an empty text.
const char *ascend_model_run_in_time(const ModelledExchange *exchange);

// The constants of time_constants.h, by index up to the number returned: name, unit and source, value, least and most
// value. Sets one.
uint32_t ascend_model_constant(uint32_t index, const char **texts, double *values);
void ascend_model_set_constant(uint32_t index, double value);

#pragma GCC visibility pop
}
