#include "session.h"

#include <cstring>
#include <type_traits>

#include "layout.h"
#include "session_methods.h"

namespace binding {
namespace {

PyTypeObject *session_type = nullptr;
PyTypeObject *fault_type = nullptr; // of a tuple with names

void *release_interpreter() { return PyEval_SaveThread(); }
void acquire_interpreter(void *released) { PyEval_RestoreThread(static_cast<PyThreadState *>(released)); }

// ExchangeSession::on_step; `watcher` is the Session. What the hook raises stays set until the call has ended.
int32_t step_begun(void *watcher, uint32_t step) {
    const PyGILState_STATE state = PyGILState_Ensure();
    const auto hook = Reference::to(static_cast<Session *>(watcher)->on_step.get()); // it may take itself away
    const bool goes_on = !hook || Reference(PyObject_CallFunction(hook.get(), "I", step));
    PyGILState_Release(state);
    return goes_on ? 0 : 1;
}

// The numbers of a sequence, `count` of them.
template <class Number> bool read_numbers(PyObject *sequence, uint32_t count, std::vector<Number> &numbers) {
    if (PySequence_Size(sequence) != static_cast<Py_ssize_t>(count)) {
        if (PyErr_Occurred() == nullptr)
            PyErr_Format(PyExc_ValueError, "%R has not an entry for each of %u ranks", sequence, count);
        return false;
    }
    for (uint32_t rank = 0; rank < count; ++rank) {
        const Reference entry(PySequence_GetItem(sequence, rank));
        if (!entry)
            return false;
        if constexpr (std::is_pointer_v<Number>)
            numbers.push_back(PyLong_AsVoidPtr(entry.get()));
        else
            numbers.push_back(static_cast<Number>(PyLong_AsLong(entry.get())));
        if (PyErr_Occurred() != nullptr)
            return false;
    }
    return true;
}

PyObject *address(PyObject *self, void *) { return PyLong_FromVoidPtr(&value_of<Session>(self).native); }
PyObject *rank(PyObject *self, void *) { return PyLong_FromUnsignedLong(value_of<Session>(self).native.rank); }
PyObject *step(PyObject *self, void *) { return PyLong_FromUnsignedLong(value_of<Session>(self).native.step); }
PyObject *epoch(PyObject *self, void *) { return PyLong_FromUnsignedLongLong(value_of<Session>(self).native.epoch); }
PyObject *inherited(PyObject *self, void *) { return PyBool_FromLong(value_of<Session>(self).inherited); }

PyObject *waited_ns(PyObject *self, void *) {
    const auto &waited = value_of<Session>(self).waited_ns;
    return as_list(waited.data(), waited.size()).release();
}

PyObject *missing(PyObject *self, void *) {
    const auto &flags = value_of<Session>(self).missing;
    std::vector<uint32_t> ranks;
    for (uint32_t rank = 0; rank < flags.size(); ++rank)
        if (flags[rank] != 0)
            ranks.push_back(rank);
    return as_list(ranks.data(), ranks.size()).release();
}

PyObject *fault(PyObject *self, void *) {
    const ExchangeFault &found = value_of<Session>(self).native.fault;
    return PyObject_CallFunction(reinterpret_cast<PyObject *>(fault_type), "((IIIIKLI))", found.result, found.culprit,
                                 found.step, found.cause, static_cast<unsigned long long>(found.epoch),
                                 static_cast<long long>(found.detail), found.region);
}

PyObject *refusal(PyObject *self, void *) {
    const auto &text = value_of<Session>(self).native.refusal;
    const auto *begin = reinterpret_cast<const char *>(text);
    return PyBytes_FromStringAndSize(begin, static_cast<Py_ssize_t>(strnlen(begin, sizeof text)));
}

PyObject *on_step(PyObject *self, void *) {
    PyObject *hook = value_of<Session>(self).on_step.get();
    return Reference::to(hook == nullptr ? Py_None : hook).release();
}

int set_on_step(PyObject *self, PyObject *hook, void *) {
    auto &session = value_of<Session>(self);
    const bool watched = hook != nullptr && hook != Py_None;
    session.native.on_step = watched ? step_begun : nullptr;
    session.on_step = Reference::to(watched ? hook : nullptr);
    return 0;
}

int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(value_of<Session>(self).on_step.get());
    return 0;
}

int clear(PyObject *self) { return set_on_step(self, nullptr, nullptr); }

} // namespace

PyObject *open_session(PyObject *library, PyObject *arguments, PyObject *named) {
    static const char *const names[] = {"layout",  "rank",    "windows", "peer_pidfds",        "timeout_ns",
                                        "workers", "spin_ns", "epoch",   "takes_host_tensors", nullptr};
    PyObject *layout, *windows, *peer_pidfds;
    unsigned int rank, workers, spin_ns;
    unsigned long long timeout_ns, epoch;
    int takes_host_tensors;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O!IOOKIIKp", names_of(names), layout_type, &layout, &rank,
                                     &windows, &peer_pidfds, &timeout_ns, &workers, &spin_ns, &epoch,
                                     &takes_host_tensors))
        return nullptr;
    Reference made = create<Session>(session_type);
    if (!made)
        return nullptr;
    auto &session = value_of<Session>(made.get());
    session.library = Reference::to(library);
    session.functions = value_of<Library>(library).functions;
    session.layout = value_of<ExchangeLayout>(layout);
    const uint32_t ranks = session.layout.ranks;
    if (!read_numbers(windows, ranks, session.windows) || !read_numbers(peer_pidfds, ranks, session.peer_pidfds))
        return nullptr;
    session.missing.resize(ranks);
    session.ended.resize(ranks);
    session.waited_ns.resize(ranks);
    session.takes_host_tensors = takes_host_tensors != 0;
    ExchangeSession &native = session.native;
    native.layout = &session.layout;
    native.windows = session.windows.data();
    native.peer_pidfds = session.peer_pidfds.data();
    native.missing = session.missing.data();
    native.ended = session.ended.data();
    native.waited_ns = session.waited_ns.data();
    native.watcher = &session;
    native.interpreter = {release_interpreter, acquire_interpreter, PyErr_CheckSignals};
    native.timeout_ns = timeout_ns;
    native.workers = workers;
    native.spin_ns = spin_ns;
    native.rank = rank;
    native.epoch = native.begun = epoch;
    return made.release();
}

bool add_session_type(PyObject *module) {
    static PyStructSequence_Field fault_fields[] = {{"result", nullptr}, {"culprit", nullptr}, {"step", nullptr},
                                                    {"cause", nullptr},  {"epoch", nullptr},   {"detail", nullptr},
                                                    {"region", nullptr}, {nullptr, nullptr}};
    static PyStructSequence_Desc fault_description = {"sglang_ascend_moe._host_kernels.Found",
                                                      "ExchangeFault of exchange.h.", fault_fields, 7};
    static PyGetSetDef attributes[] = {attribute("address", address),
                                       attribute("rank", rank),
                                       attribute("step", step),
                                       attribute("epoch", epoch),
                                       attribute("waited_ns", waited_ns),
                                       attribute("missing", missing),
                                       attribute("fault", fault),
                                       attribute("refusal", refusal),
                                       attribute("inherited", inherited),
                                       attribute("on_step", on_step, set_on_step),
                                       {}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, slot(destroy<Session>)},
        {Py_tp_traverse, slot(traverse)},
        {Py_tp_clear, slot(clear)},
        {Py_tp_getset, attributes},
        {Py_tp_methods, session_methods()},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Session", sizeof(Object<Session>), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    fault_type = PyStructSequence_NewType(&fault_description);
    return fault_type != nullptr && PyModule_AddType(module, fault_type) == 0 && add_type(module, session_type, spec);
}

} // namespace binding
