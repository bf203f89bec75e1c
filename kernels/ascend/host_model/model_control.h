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

#pragma GCC visibility pop
}
