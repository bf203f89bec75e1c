// The kernels' entry points, which take their arguments by value.
//
// A unit that includes the kernels and has entries of its own, with the qualifiers of CANN's compiler, defines
// ASCEND_KERNELS_HAVE_OTHER_ENTRIES.
#pragma once

#include "arguments.h"
#include "kernel_operator.h"

#ifndef ASCEND_KERNELS_HAVE_OTHER_ENTRIES
extern "C" __global__ __aicore__ void moe_dispatch(ascend_kernels::DispatchArguments arguments);
extern "C" __global__ __aicore__ void moe_combine(ascend_kernels::CombineArguments arguments);
#endif
