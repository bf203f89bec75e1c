#include "arguments.h"

#include "tensors.h"

namespace binding {

struct Arguments::Input {
    Rows x, ids;
};

// At everything but the weights.
void Arguments::point(const Input &input, const Manner &manner) {
    dispatch.x = input.x.begin;
    dispatch.x_stride = input.x.stride;
    dispatch.tokens = combine.tokens = input.x.rows;
    dispatch.ids = input.ids.begin;
    dispatch.ids_bytes = input.ids.element_bytes;
    dispatch.kind = manner.kind;
    dispatch.part = combine.part = manner.part;
    dispatch.continues = manner.continues;
    dispatch.row_bytes = manner.row_bytes;
    combine.positions = dispatch.positions; // a combine may have been given others
}

bool Arguments::take_fitting(const ExchangeLayout &layout, PyObject *const *tensors, const Manner &manner) {
    Matrix x, ids, weights;
    if (!x.of(tensors[0], layout.hidden) || !x.holds_elements(layout.element) || !ids.of(tensors[1], layout.topk) ||
        !ids.is_contiguous() || !(ids.has_type(dlpack::integer, 64) || ids.has_type(dlpack::integer, 32)) ||
        !weights.of(tensors[2], layout.topk) || !weights.is_contiguous() || !weights.has_type(dlpack::floating, 32) ||
        ids.shape[0] != x.shape[0] || weights.shape[0] != x.shape[0])
        return false;
    point({x.as_rows(), ids.as_rows()}, manner);
    const auto *given = static_cast<const float *>(weights.as_rows().begin);
    dispatch.weights = manner.keep_weights ? given : nullptr;
    combine.weights = manner.keep_weights ? dispatch.kept_weights : given;
    return true;
}

bool Arguments::take_any(PyObject *const *tensors, const Manner &manner, PyObject *kept) {
    Input input;
    if (!input.x.ask(tensors[0]) || !input.ids.ask(tensors[1]))
        return false;
    point(input, manner);
    dispatch.weights = nullptr;
    if (manner.keep_weights) {
        // With torch: the kernels of a device keep none.
        combine.weights = dispatch.kept_weights;
        const Reference part(PyObject_CallMethod(kept, "narrow", "iiI", 0, 0, dispatch.tokens));
        return part && Reference(PyObject_CallMethod(part.get(), "copy_", "O", tensors[2]));
    }
    combine.weights = static_cast<const float *>(address_of(tensors[2]));
    return PyErr_Occurred() == nullptr;
}

bool Arguments::take_fitting_out(const ExchangeLayout &layout, PyObject *tensor) {
    Matrix out;
    if (!out.of(tensor, layout.hidden) || !out.holds_elements(layout.element) || out.shape[0] != combine.tokens)
        return false;
    const Rows rows = out.as_rows();
    combine.out = rows.begin;
    combine.out_stride = rows.stride;
    return true;
}

bool Arguments::take_any_out(PyObject *tensor) {
    Rows out;
    if (!out.ask(tensor))
        return false;
    combine.out = out.begin;
    combine.out_stride = out.stride;
    return true;
}

void Arguments::keep_place() {
    combine.epoch = dispatch.epoch;
    combine.slot = dispatch.slot;
    combine.first_row = dispatch.first_row;
    combine.total = dispatch.total;
}

} // namespace binding
