#include "device.h"

#ifndef MODEL_DELAY
#define MODEL_DELAY 0
#endif

const uint64_t ascend_model::default_delay = MODEL_DELAY;
