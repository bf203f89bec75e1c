// The arguments of a dispatch and of its combines as a Python type, and the calls that take them.
#pragma once

#include "objects.h"

#include "arguments.h"
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

struct Call {
    Arguments arguments;
    Session *session; // the value of `owner`
    Reference owner;
    Reference positions, weights, counts, matrix, totals;

    // Points at what the kernels take as it is; else false, and nothing is done.
    bool take_fitting(PyObject *const *tensors, const Manner &manner) {
        return session->takes_host_tensors && arguments.take_fitting(session->layout, tensors, manner);
    }
    bool take_fitting_out(PyObject *out) {
        return session->takes_host_tensors && arguments.take_fitting_out(session->layout, out);
    }
    bool take_out(PyObject *out) { return take_fitting_out(out) || arguments.take_any_out(out); }

    template <class Function> int run_dispatch(Function function) {
        const int result = run(*session, function, &arguments.dispatch);
        arguments.keep_place();
        return result;
    }
    template <class Function> int run_combine(Function function) { return run(*session, function, &arguments.combine); }
};

extern PyTypeObject *call_type;

PyObject *make_call(PyObject *session, const CallMemory &memory);

bool add_call_type(PyObject *module);

} // namespace binding
