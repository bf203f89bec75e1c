// What every call does, in as few instructions as it can be done.
//
// Between two layers a processor's caches are filled with weights, so each line of code and each Python object on this
// way comes out of memory again; docs/kernels-host.md says what that costs.
#include "call.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "tensors.h"

namespace binding {

PyTypeObject *call_type = nullptr;

namespace {

// Python reads members of it by their offsets.
static_assert(std::is_standard_layout_v<Object<Call>>);

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
    if ((manner.row_bytes > 0 || !call.take_fitting(arguments, manner)) &&
        !call.arguments.take_any(arguments, manner, call.weights.get()))
        return nullptr;
    Py_RETURN_NONE;
}

PyObject *fits_out(PyObject *self, PyObject *out) {
    return PyBool_FromLong(value_of<Call>(self).take_fitting_out(out));
}

PyObject *take_out(PyObject *self, PyObject *out) {
    if (!value_of<Call>(self).take_out(out))
        return nullptr;
    Py_RETURN_NONE;
}

// take_routing(weights, positions): tensors, or None for what the dispatch left.
PyObject *take_routing(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(2, count))
        return nullptr;
    ExchangeCombine &combine = value_of<Call>(self).arguments.combine;
    if (arguments[0] != Py_None)
        combine.weights = static_cast<const float *>(address_of(arguments[0]));
    if (arguments[1] != Py_None)
        combine.positions = static_cast<const int64_t *>(address_of(arguments[1]));
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    Py_RETURN_NONE;
}

template <class Function> PyObject *run_dispatch(PyObject *self, Function function) {
    return result_of(value_of<Call>(self).run_dispatch(function));
}

template <class Function> PyObject *run_combine(PyObject *self, Function function) {
    return result_of(value_of<Call>(self).run_combine(function));
}

const Functions &functions_of(PyObject *self) { return value_of<Call>(self).session->functions; }

PyObject *dispatch(PyObject *self, PyObject *) { return run_dispatch(self, functions_of(self).dispatch); }
PyObject *dispatch_send(PyObject *self, PyObject *) { return run_dispatch(self, functions_of(self).dispatch_send); }
PyObject *dispatch_receive(PyObject *self, PyObject *) {
    const Call &call = value_of<Call>(self);
    return result_of(run(*call.session, functions_of(self).dispatch_receive, &call.arguments.dispatch));
}

PyObject *rejoin(PyObject *self, PyObject *) { return run_combine(self, functions_of(self).rejoin); }
PyObject *combine(PyObject *self, PyObject *out) {
    return value_of<Call>(self).take_out(out) ? run_combine(self, functions_of(self).combine) : nullptr;
}
PyObject *combine_send(PyObject *self, PyObject *) { return run_combine(self, functions_of(self).combine_send); }
PyObject *combine_receive(PyObject *self, PyObject *out) {
    return value_of<Call>(self).take_out(out) ? run_combine(self, functions_of(self).combine_receive) : nullptr;
}

PyObject *forget_place(PyObject *self, PyObject *) {
    Arguments &arguments = value_of<Call>(self).arguments;
    arguments.dispatch.epoch = arguments.dispatch.first_row = arguments.dispatch.total = 0;
    arguments.dispatch.slot = 0;
    arguments.keep_place();
    Py_RETURN_NONE;
}

PyObject *dispatch_address(PyObject *self, void *) {
    return PyLong_FromVoidPtr(&value_of<Call>(self).arguments.dispatch);
}
PyObject *combine_address(PyObject *self, void *) {
    return PyLong_FromVoidPtr(&value_of<Call>(self).arguments.combine);
}

int traverse(PyObject *self, visitproc visit, void *arg) {
    const Call &call = value_of<Call>(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(call.owner.get());
    Py_VISIT(call.positions.get());
    Py_VISIT(call.weights.get());
    Py_VISIT(call.counts.get());
    Py_VISIT(call.matrix.get());
    Py_VISIT(call.totals.get());
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
    call.totals = Reference::to(memory.totals);
    ExchangeDispatch &dispatch = call.arguments.dispatch;
    dispatch.positions = static_cast<int64_t *>(address_of(memory.positions));
    dispatch.kept_weights = static_cast<float *>(address_of(memory.weights));
    dispatch.counts = static_cast<int64_t *>(address_of(memory.counts));
    dispatch.matrix = static_cast<uint32_t *>(address_of(memory.matrix));
    if (memory.totals != Py_None)
        dispatch.totals = static_cast<int64_t *>(address_of(memory.totals));
    call.arguments.combine.positions = dispatch.positions;
    return PyErr_Occurred() == nullptr ? made.release() : nullptr;
}

bool add_call_type(PyObject *module) {
    static PyMemberDef members[] = {member("positions", T_OBJECT_EX, offsetof(Object<Call>, value.positions)),
                                    member("weights", T_OBJECT_EX, offsetof(Object<Call>, value.weights)),
                                    member("counts", T_OBJECT_EX, offsetof(Object<Call>, value.counts)),
                                    member("epoch", T_ULONGLONG, offsetof(Object<Call>, value.arguments.combine.epoch)),
                                    member("slot", T_UINT, offsetof(Object<Call>, value.arguments.combine.slot)),
                                    member("tokens", T_UINT, offsetof(Object<Call>, value.arguments.combine.tokens)),
                                    member("total", T_ULONGLONG, offsetof(Object<Call>, value.arguments.combine.total)),
                                    member("layer", T_UINT, offsetof(Object<Call>, value.arguments.combine.layer), 0),
                                    {}};
    static PyGetSetDef attributes[] = {
        attribute("dispatch_address", dispatch_address), attribute("combine_address", combine_address), {}};
    static PyMethodDef methods[] = {method("take", take, METH_FASTCALL | METH_KEYWORDS),
                                    method("fits_out", fits_out, METH_O),
                                    method("take_out", take_out, METH_O),
                                    method("take_routing", take_routing, METH_FASTCALL),
                                    method("dispatch", dispatch, METH_NOARGS),
                                    method("dispatch_send", dispatch_send, METH_NOARGS),
                                    method("dispatch_receive", dispatch_receive, METH_NOARGS),
                                    method("rejoin", rejoin, METH_NOARGS),
                                    method("combine", combine, METH_O),
                                    method("combine_send", combine_send, METH_NOARGS),
                                    method("combine_receive", combine_receive, METH_O),
                                    method("forget_place", forget_place, METH_NOARGS),
                                    {}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, slot(destroy<Call>)}, {Py_tp_traverse, slot(traverse)}, {Py_tp_members, members},
        {Py_tp_getset, attributes},           {Py_tp_methods, methods},         {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Call", sizeof(Object<Call>), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return add_type(module, call_type, spec);
}

} // namespace binding
