// What every call does, in as few instructions as it can be done.
//
// Between two layers a processor's caches are filled with weights, so each line of code and each Python object on this
// way comes out of memory again; docs/kernels-host.md says what that costs.
#include "call.h"

#include <cstddef>
#include <cstdint>

#include "tensors.h"

namespace binding {
namespace {

struct Call {
    ExchangeDispatch dispatch;
    ExchangeCombine combine;
    Session *session; // the value of `owner`
    Reference owner;
    Reference positions, weights, counts, matrix;
};

PyTypeObject *call_type = nullptr;

struct Manner {
    uint32_t kind = 0, part = EXCHANGE_WHOLE, row_bytes = 0;
    bool keep_weights = true, continues = false;
};

struct Input {
    Rows x, ids;
    const float *weights;
};

// Whether the tensors are as the kernels take them, so that nothing has to be copied or refused.
bool fit(const Session &session, PyObject *const *tensors, Input &input) {
    const ExchangeLayout &layout = session.layout;
    Matrix x, ids, weights;
    if (!session.takes_host_tensors || !x.of(tensors[0], layout.hidden) || !x.holds_elements(layout.element) ||
        !ids.of(tensors[1], layout.topk) || !ids.is_contiguous() ||
        !(ids.has_type(dlpack::integer, 64) || ids.has_type(dlpack::integer, 32)) ||
        !weights.of(tensors[2], layout.topk) || !weights.is_contiguous() || !weights.has_type(dlpack::floating, 32) ||
        ids.shape[0] != x.shape[0] || weights.shape[0] != x.shape[0])
        return false;
    input = {x.as_rows(), ids.as_rows(), static_cast<const float *>(weights.as_rows().begin)};
    return true;
}

// Points a call at everything but the weights.
void point(Call &call, const Input &input, const Manner &manner) {
    ExchangeDispatch &dispatch = call.dispatch;
    ExchangeCombine &combine = call.combine;
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

// Points a call at tensors [x, ids, weights]; false, and nothing done, if they do not fit.
bool take_fitting(Call &call, PyObject *const *tensors, const Manner &manner) {
    Input input;
    if (!fit(*call.session, tensors, input))
        return false;
    point(call, input, manner);
    call.dispatch.weights = manner.keep_weights ? input.weights : nullptr;
    call.combine.weights = manner.keep_weights ? call.dispatch.kept_weights : input.weights;
    return true;
}

// Copies weights [tokens, topk] with torch, wherever they lie.
bool keep_weights(Call &call, PyObject *weights) {
    const Reference kept(PyObject_CallMethod(call.weights.get(), "narrow", "iiI", 0, 0, call.dispatch.tokens));
    return kept && Reference(PyObject_CallMethod(kept.get(), "copy_", "O", weights));
}

// Points a call at tensors [x, ids, weights] that are not to be looked into; false with an exception set.
bool take_as_told(Call &call, PyObject *const *tensors, const Manner &manner) {
    Input input;
    if (!input.x.ask(tensors[0]) || !input.ids.ask(tensors[1]))
        return false;
    point(call, input, manner);
    call.dispatch.weights = nullptr;
    call.combine.weights =
        manner.keep_weights ? call.dispatch.kept_weights : static_cast<const float *>(address_of(tensors[2]));
    return PyErr_Occurred() == nullptr && (!manner.keep_weights || keep_weights(call, tensors[2]));
}

uint32_t number(PyObject *argument) { return static_cast<uint32_t>(PyLong_AsLong(argument)); }

bool read_named(PyObject *name, PyObject *value, Manner &manner) {
    if (PyUnicode_CompareWithASCIIString(name, "keep_weights") == 0)
        manner.keep_weights = value == Py_True;
    else if (PyUnicode_CompareWithASCIIString(name, "continues") == 0)
        manner.continues = value == Py_True;
    else if (PyUnicode_CompareWithASCIIString(name, "row_bytes") == 0)
        manner.row_bytes = number(value);
    else
        PyErr_Format(PyExc_TypeError, "take has no argument %R", name);
    return PyErr_Occurred() == nullptr;
}

// take_fitting(x, ids, weights, kind)
PyObject *take_fitting(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(4, count))
        return nullptr;
    const bool taken = take_fitting(value_of<Call>(self), arguments, {.kind = number(arguments[3])});
    return PyErr_Occurred() != nullptr ? nullptr : PyBool_FromLong(taken);
}

// take(x, ids, weights, kind, part, *, keep_weights, continues=False, row_bytes=0)
PyObject *take(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names) {
    if (!expects(5, count))
        return nullptr;
    Manner manner = {.kind = number(arguments[3]), .part = number(arguments[4])};
    const Py_ssize_t named = names == nullptr ? 0 : PyTuple_Size(names);
    for (Py_ssize_t i = 0; i < named; ++i)
        if (!read_named(PyTuple_GetItem(names, i), arguments[count + i], manner))
            return nullptr;
    Call &call = value_of<Call>(self);
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    // Rows of which only the beginning is moved may be of anything.
    if ((manner.row_bytes > 0 || !take_fitting(call, arguments, manner)) && !take_as_told(call, arguments, manner))
        return nullptr;
    Py_RETURN_NONE;
}

// Points a combine at its result, if it fits.
bool fits_out(Call &call, PyObject *tensor) {
    const Session &session = *call.session;
    Matrix out;
    if (!session.takes_host_tensors || !out.of(tensor, session.layout.hidden) ||
        !out.holds_elements(session.layout.element) || out.shape[0] != call.combine.tokens)
        return false;
    const Rows rows = out.as_rows();
    call.combine.out = rows.begin;
    call.combine.out_stride = rows.stride;
    return true;
}

bool take_out(Call &call, PyObject *tensor) {
    Rows rows;
    if (fits_out(call, tensor))
        return true;
    if (!rows.ask(tensor))
        return false;
    call.combine.out = rows.begin;
    call.combine.out_stride = rows.stride;
    return true;
}

PyObject *fits_out(PyObject *self, PyObject *out) { return PyBool_FromLong(fits_out(value_of<Call>(self), out)); }

PyObject *take_out(PyObject *self, PyObject *out) {
    if (!take_out(value_of<Call>(self), out))
        return nullptr;
    Py_RETURN_NONE;
}

// take_routing(weights, positions): tensors, or None for what the dispatch left.
PyObject *take_routing(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(2, count))
        return nullptr;
    ExchangeCombine &combine = value_of<Call>(self).combine;
    if (arguments[0] != Py_None)
        combine.weights = static_cast<const float *>(address_of(arguments[0]));
    if (arguments[1] != Py_None)
        combine.positions = static_cast<const int64_t *>(address_of(arguments[1]));
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    Py_RETURN_NONE;
}

// What combine needs to know of the dispatch.
void keep_place(Call &call) {
    const ExchangeDispatch &done = call.dispatch;
    call.combine.epoch = done.epoch;
    call.combine.slot = done.slot;
    call.combine.first_row = done.first_row;
    call.combine.total = done.total;
}

PyObject *dispatch(PyObject *self, PyObject *) {
    Call &call = value_of<Call>(self);
    const int result = run(*call.session, call.session->functions.dispatch, &call.dispatch);
    keep_place(call);
    return result_of(result);
}

PyObject *dispatch_send(PyObject *self, PyObject *) {
    Call &call = value_of<Call>(self);
    const int result = run(*call.session, call.session->functions.dispatch_send, &call.dispatch);
    keep_place(call);
    return result_of(result);
}

PyObject *dispatch_receive(PyObject *self, PyObject *) {
    const Call &call = value_of<Call>(self);
    return result_of(run(*call.session, call.session->functions.dispatch_receive, &call.dispatch));
}

PyObject *rejoin(PyObject *self, PyObject *) {
    const Call &call = value_of<Call>(self);
    return result_of(run(*call.session, call.session->functions.rejoin, &call.combine));
}

PyObject *combine(PyObject *self, PyObject *out) {
    Call &call = value_of<Call>(self);
    if (!take_out(call, out))
        return nullptr;
    return result_of(run(*call.session, call.session->functions.combine, &call.combine));
}

PyObject *combine_send(PyObject *self, PyObject *) {
    const Call &call = value_of<Call>(self);
    return result_of(run(*call.session, call.session->functions.combine_send, &call.combine));
}

PyObject *combine_receive(PyObject *self, PyObject *out) {
    Call &call = value_of<Call>(self);
    if (!take_out(call, out))
        return nullptr;
    return result_of(run(*call.session, call.session->functions.combine_receive, &call.combine));
}

PyObject *forget_place(PyObject *self, PyObject *) {
    Call &call = value_of<Call>(self);
    call.dispatch.epoch = call.dispatch.first_row = call.dispatch.total = 0;
    call.dispatch.slot = 0;
    keep_place(call);
    Py_RETURN_NONE;
}

PyObject *dispatch_address(PyObject *self, void *) { return PyLong_FromVoidPtr(&value_of<Call>(self).dispatch); }
PyObject *combine_address(PyObject *self, void *) { return PyLong_FromVoidPtr(&value_of<Call>(self).combine); }

int traverse(PyObject *self, visitproc visit, void *arg) {
    const Call &call = value_of<Call>(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(call.owner.get());
    Py_VISIT(call.positions.get());
    Py_VISIT(call.weights.get());
    Py_VISIT(call.counts.get());
    Py_VISIT(call.matrix.get());
    return 0;
}

} // namespace

PyObject *make_call(PyObject *session, const CallMemory &memory) {
    Reference made = create<Call>(call_type);
    if (!made)
        return nullptr;
    Call &call = value_of<Call>(made.get());
    call.owner = Reference::to(session);
    call.session = &value_of<Session>(session);
    call.positions = Reference::to(memory.positions);
    call.weights = Reference::to(memory.weights);
    call.counts = Reference::to(memory.counts);
    call.matrix = Reference::to(memory.matrix);
    call.dispatch.positions = static_cast<int64_t *>(address_of(memory.positions));
    call.dispatch.kept_weights = static_cast<float *>(address_of(memory.weights));
    call.dispatch.counts = static_cast<int64_t *>(address_of(memory.counts));
    call.dispatch.matrix = static_cast<uint32_t *>(address_of(memory.matrix));
    call.combine.positions = call.dispatch.positions;
    return PyErr_Occurred() == nullptr ? made.release() : nullptr;
}

#define PLACE(type, field) type, offsetof(Object<Call>, value.field), READONLY

bool add_call_type(PyObject *module) {
    static PyMemberDef members[] = {
        {"positions", PLACE(T_OBJECT_EX, positions),
         "int64 [tokens, topk] of the last dispatch: rank << 32 | row, or -1."},
        {"weights", PLACE(T_OBJECT_EX, weights), "float32 [tokens, topk]: those that the last dispatch kept."},
        {"counts", PLACE(T_OBJECT_EX, counts), "int64 [local experts] of the last dispatch."},
        {"epoch", PLACE(T_ULONGLONG, combine.epoch), "Of the last dispatch; 0: it was only captured."},
        {"slot", PLACE(T_UINT, combine.slot), "Of the last dispatch."},
        {"tokens", PLACE(T_UINT, combine.tokens), "Of this rank."},
        {"total", PLACE(T_ULONGLONG, combine.total), "Rows that arrived with the last dispatch."},
        {}};
    static PyGetSetDef attributes[] = {
        {"dispatch_address", dispatch_address, nullptr, "Of the ExchangeDispatch.", nullptr},
        {"combine_address", combine_address, nullptr, "Of the ExchangeCombine.", nullptr},
        {}};
    static PyMethodDef methods[] = {
        with_arguments("take_fitting", take_fitting,
                       "take_fitting(x, ids, weights, kind): take for a whole slot, with weights that are kept, if the "
                       "kernels take the tensors as they are; else False, and nothing is done."),
        with_names(
            "take", take,
            "take(x, ids, weights, kind, part, *, keep_weights, continues=False, row_bytes=0): points at tensors "
            "that stay until the dispatch is done."),
        with_one_argument("fits_out", fits_out, "fits_out(out): take_out, if the kernels can write it as it is."),
        with_one_argument("take_out", take_out, "take_out(out): points combine at its result."),
        with_arguments("take_routing", take_routing,
                       "take_routing(weights, positions): points combine at these; None: those of the dispatch."),
        without_arguments("dispatch", dispatch, "dispatch(): its result."),
        without_arguments("dispatch_send", dispatch_send, "dispatch_send(): its result."),
        without_arguments("dispatch_receive", dispatch_receive, "dispatch_receive(): its result."),
        without_arguments("rejoin", rejoin, "rejoin(): its result."),
        with_one_argument("combine", combine, "combine(out): its result."),
        without_arguments("combine_send", combine_send, "combine_send(): its result."),
        with_one_argument("combine_receive", combine_receive, "combine_receive(out): its result."),
        without_arguments("forget_place", forget_place, "forget_place(): as if nothing had been dispatched."),
        {}};
    static PyType_Slot slots[] = {
        {Py_tp_doc, const_cast<char *>("ExchangeDispatch and ExchangeCombine of exchange.h, used again and again.")},
        {Py_tp_dealloc, slot(destroy<Call>)},
        {Py_tp_traverse, slot(traverse)},
        {Py_tp_members, members},
        {Py_tp_getset, attributes},
        {Py_tp_methods, methods},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Call", sizeof(Object<Call>), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    call_type = reinterpret_cast<PyTypeObject *>(PyType_FromSpec(&spec));
    return call_type != nullptr && PyModule_AddType(module, call_type) == 0;
}

#undef PLACE

} // namespace binding
