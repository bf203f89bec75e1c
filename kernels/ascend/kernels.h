// The kernels' entry points. `arguments` lies in global memory: DispatchArguments and CombineArguments.
//
// A unit that includes the kernels and has entries of its own, with the qualifiers of CANN's compiler, defines
// ASCEND_KERNELS_HAVE_OTHER_ENTRIES.
#pragma once

#include "kernel_operator.h"

#ifndef ASCEND_KERNELS_HAVE_OTHER_ENTRIES
extern "C" __global__ __aicore__ void moe_dispatch(GM_ADDR arguments);
extern "C" __global__ __aicore__ void moe_combine(GM_ADDR arguments);
#endif
