// Stands in for CANN's header of the same name, so that the kernels compile with a host compiler and run on the model.
// The subset that the kernels use, no more. No NPU has run these kernels; docs/ascend-kernels.md says what that leaves
// open.
#pragma once

#include "instructions.h"
