// The kernels' entry points. `arguments` lies in global memory: DispatchArguments and CombineArguments.
#pragma once

#include "kernel_operator.h"

extern "C" __global__ __aicore__ void moe_dispatch(GM_ADDR arguments);
extern "C" __global__ __aicore__ void moe_combine(GM_ADDR arguments);
