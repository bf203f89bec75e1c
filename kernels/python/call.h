// The arguments of a dispatch and of its combines as a Python type, and the calls that take them.
#pragma once

#include "objects.h"

#include "session.h"

namespace binding {

// Tensors of a session's device that a call points at for ever. Borrowed.
struct CallMemory {
    PyObject *positions; // int64 [tokens, topk]
    PyObject *weights;   // float32 [tokens, topk]
    PyObject *counts;    // int64 [local experts]
    PyObject *matrix;    // int32 [ranks, counted experts]
    PyObject *totals;    // int64 [ranks], if granting, else None
};

PyObject *make_call(PyObject *session, const CallMemory &memory);

bool add_call_type(PyObject *module);

} // namespace binding
