#include "counters.h"

#include <cstddef>
#include <ctime>
#include <type_traits>

namespace binding {

PyTypeObject *counters_type = nullptr;

uint64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

void Counters::dispatched(const Dispatched &ended) {
    PhaseCounts &counts = of(ended.kind);
    counts.calls += ended.first_round;
    counts.rounds += 1;
    counts.tokens += ended.tokens;
    counts.rows += ended.rows;
    counts.largest_rows += ended.largest_rows;
    counts.dispatch_ns += now_ns() - ended.begun_ns;
}

void Counters::combined(uint32_t kind, uint64_t begun_ns) { of(kind).combine_ns += now_ns() - begun_ns; }

namespace {

static_assert(std::is_standard_layout_v<Object<Counters>>);

PyObject *make(PyTypeObject *type, PyObject *, PyObject *) { return create<Counters>(type).release(); }

// dispatched(kind, begun_ns, tokens, rows, largest_rows, first_round)
PyObject *dispatched(PyObject *self, PyObject *arguments) {
    unsigned int kind;
    unsigned long long begun_ns, tokens, rows, largest_rows;
    int first_round;
    if (!PyArg_ParseTuple(arguments, "IKKKKp", &kind, &begun_ns, &tokens, &rows, &largest_rows, &first_round))
        return nullptr;
    value_of<Counters>(self).dispatched({kind, begun_ns, tokens, rows, largest_rows, first_round != 0});
    Py_RETURN_NONE;
}

// planned(begun_ns)
PyObject *planned(PyObject *self, PyObject *begun_ns) {
    const uint64_t begun = PyLong_AsUnsignedLongLong(begun_ns);
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    value_of<Counters>(self).of(EXCHANGE_PREFILL).dispatch_ns += now_ns() - begun;
    Py_RETURN_NONE;
}

// combined(kind, begun_ns)
PyObject *combined(PyObject *self, PyObject *arguments) {
    unsigned int kind;
    unsigned long long begun_ns;
    if (!PyArg_ParseTuple(arguments, "IK", &kind, &begun_ns))
        return nullptr;
    value_of<Counters>(self).combined(kind, begun_ns);
    Py_RETURN_NONE;
}

// of(kind)
PyObject *of(PyObject *self, PyObject *kind) {
    const auto wanted = static_cast<uint32_t>(PyLong_AsUnsignedLong(kind));
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    const PhaseCounts &counts = value_of<Counters>(self).of(wanted);
    return Py_BuildValue("(KKKKKKK)", counts.calls, counts.rounds, counts.tokens, counts.rows, counts.largest_rows,
                         counts.dispatch_ns, counts.combine_ns);
}

PyObject *rounds(PyObject *self, void *) {
    const auto &phases = value_of<Counters>(self).phases;
    return PyLong_FromUnsignedLongLong(phases[0].rounds + phases[1].rounds);
}

} // namespace

bool add_counters_type(PyObject *module) {
    static PyMemberDef members[] = {
        {"measures_imbalance", T_BOOL, offsetof(Object<Counters>, value.measures_imbalance), 0, nullptr}, {}};
    static PyGetSetDef attributes[] = {attribute("rounds", rounds), {}};
    static PyMethodDef methods[] = {method("dispatched", dispatched, METH_VARARGS),
                                    method("planned", planned, METH_O),
                                    method("combined", combined, METH_VARARGS),
                                    method("of", of, METH_O),
                                    {}};
    static PyType_Slot slots[] = {
        {Py_tp_new, slot(make)},  {Py_tp_dealloc, slot(destroy<Counters>)},
        {Py_tp_members, members}, {Py_tp_getset, attributes},
        {Py_tp_methods, methods}, {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Counters", sizeof(Object<Counters>), 0,
                               Py_TPFLAGS_DEFAULT, slots};
    counters_type = reinterpret_cast<PyTypeObject *>(PyType_FromSpec(&spec));
    return counters_type != nullptr && PyModule_AddType(module, counters_type) == 0;
}

} // namespace binding
