// The arguments of a dispatch and of its combines, and how they are made to point at tensors.
#pragma once

#include "objects.h"

#include "exchange.h"

namespace binding {

// What of a dispatch is not in its tensors.
struct Manner {
    uint32_t kind = 0, part = EXCHANGE_WHOLE, row_bytes = 0;
    bool keep_weights = true, continues = false;
};

struct Arguments {
    ExchangeDispatch dispatch;
    ExchangeCombine combine;

    // Points at tensors [x, ids, weights] in the memory of the host if they are as the kernels take them, so that
    // nothing has to be copied or refused; else false, and nothing is done.
    bool take_fitting(const ExchangeLayout &layout, PyObject *const *tensors, const Manner &manner);
    // Points at tensors that are not looked into, wherever they lie. `kept`: the tensor for weights that are kept.
    // False with an exception set.
    bool take_any(PyObject *const *tensors, const Manner &manner, PyObject *kept);

    // The same for the result of a combine.
    bool take_fitting_out(const ExchangeLayout &layout, PyObject *out);
    bool take_any_out(PyObject *out);

    // Tells combine what it needs to know of the dispatch.
    void keep_place();

  private:
    struct Input;
    void point(const Input &input, const Manner &manner);
};

} // namespace binding
