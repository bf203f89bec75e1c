#include "session.h"

#include <algorithm>
#include <cstring>

#include "call.h"
#include "layout.h"
#include "tensors.h"

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

// new_call(positions, weights, counts, matrix)
PyObject *new_call(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    return expects(4, count) ? make_call(self, {arguments[0], arguments[1], arguments[2], arguments[3]}) : nullptr;
}

// refuse(kind, problem)
PyObject *refuse(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    unsigned int kind;
    const char *text;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(arguments, "Is#", &kind, &text, &bytes))
        return nullptr;
    const auto sent = static_cast<uint32_t>(std::min<Py_ssize_t>(bytes, EXCHANGE_REFUSAL_BYTES));
    return result_of(run(session, session.functions.refuse, kind, reinterpret_cast<const uint8_t *>(text), sent));
}

// plan(block, tokens, error, detail)
PyObject *plan(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    const uint64_t box = session.layout.mailbox_bytes;
    const char *block;
    Py_ssize_t bytes;
    unsigned int tokens, error;
    long long detail;
    if (!PyArg_ParseTuple(arguments, "y#IIL", &block, &bytes, &tokens, &error, &detail))
        return nullptr;
    if (static_cast<uint64_t>(bytes) > box)
        return PyErr_Format(PyExc_ValueError, "a block of %zd bytes does not fit a mailbox of %llu", bytes,
                            static_cast<unsigned long long>(box));
    std::vector<uint32_t> lengths(session.layout.ranks);
    std::vector<uint8_t> blocks(session.layout.ranks * box);
    ExchangePlan call = {reinterpret_cast<const uint8_t *>(block),
                         static_cast<uint32_t>(bytes),
                         tokens,
                         error,
                         0,
                         detail,
                         lengths.data(),
                         blocks.data()};
    const int result = run(session, session.functions.plan, &call);
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    Reference received(PyList_New(0));
    for (uint32_t rank = 0; received && result == EXCHANGE_OK && rank < session.layout.ranks; ++rank) {
        const char *begin = reinterpret_cast<const char *>(blocks.data()) + rank * box;
        if (!append(received, Reference(PyBytes_FromStringAndSize(begin, lengths[rank]))))
            return nullptr;
    }
    return received ? Py_BuildValue("(iN)", result, received.release()) : nullptr;
}

template <class Number> Reference as_list(const Number *numbers, size_t count) {
    Reference list(PyList_New(0));
    for (size_t i = 0; i < count; ++i)
        if (!list || !append(list, Reference(PyLong_FromUnsignedLongLong(numbers[i]))))
            return Reference();
    return list;
}

// [chunks, ranks] as lists.
Reference as_lists(const std::vector<uint32_t> &rows, uint32_t ranks) {
    Reference chunks(PyList_New(0));
    for (size_t begin = 0; begin < rows.size(); begin += ranks)
        if (!chunks || !append(chunks, as_list(&rows[begin], ranks)))
            return Reference();
    return chunks;
}

// count_chunks(ids, chunk_tokens)
PyObject *count_chunks(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    PyObject *tensor;
    unsigned int chunk_tokens;
    Rows ids;
    if (!PyArg_ParseTuple(arguments, "OI", &tensor, &chunk_tokens) || !ids.ask(tensor))
        return nullptr;
    if (chunk_tokens == 0)
        return PyErr_Format(PyExc_ValueError, "a chunk has at least one token");
    std::vector<uint32_t> rows((ids.rows + chunk_tokens - 1) / chunk_tokens * session.layout.ranks);
    int64_t detail = 0;
    const uint32_t error = session.functions.count_chunks(&session.layout, ids.begin, ids.element_bytes, ids.rows,
                                                          chunk_tokens, rows.data(), &detail);
    Reference counted = as_lists(rows, session.layout.ranks);
    return counted ? Py_BuildValue("(NIL)", counted.release(), error, static_cast<long long>(detail)) : nullptr;
}

// leave(result, step, epoch)
PyObject *leave(PyObject *self, PyObject *arguments) {
    const auto &session = value_of<Session>(self);
    unsigned int result, step;
    unsigned long long epoch;
    if (!PyArg_ParseTuple(arguments, "IIK", &result, &step, &epoch))
        return nullptr;
    if (!session.inherited)
        session.functions.leave(&session.native, result, step, epoch);
    Py_RETURN_NONE;
}

PyObject *disown(PyObject *self, PyObject *) {
    value_of<Session>(self).inherited = true;
    Py_RETURN_NONE;
}

// Whether the kernels are those of a device.
bool is_on_device(const Session &session) {
    if (session.functions.device_open == nullptr)
        PyErr_SetString(PyExc_TypeError, "these kernels are for no device");
    return session.functions.device_open != nullptr;
}

// open_device(cores, launches)
PyObject *open_device(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    unsigned int cores, launches;
    if (!PyArg_ParseTuple(arguments, "II", &cores, &launches) || !is_on_device(session))
        return nullptr;
    return result_of(run(session, session.functions.device_open, cores, launches));
}

PyObject *check_device(PyObject *self, PyObject *) {
    auto &session = value_of<Session>(self);
    return is_on_device(session) ? result_of(run(session, session.functions.device_check)) : nullptr;
}

PyObject *close_device(PyObject *self, PyObject *) {
    auto &session = value_of<Session>(self);
    if (!is_on_device(session))
        return nullptr;
    if (!session.inherited)
        session.functions.device_close(&session.native);
    Py_RETURN_NONE;
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
    return PyObject_CallFunction(reinterpret_cast<PyObject *>(fault_type), "((IIIIKL))", found.result, found.culprit,
                                 found.step, found.cause, static_cast<unsigned long long>(found.epoch),
                                 static_cast<long long>(found.detail));
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
    static const char *const names[] = {
        "layout", "rank", "windows", "peer_pidfds", "timeout_ns", "workers", "epoch", "takes_host_tensors", nullptr};
    PyObject *layout, *windows, *peer_pidfds;
    unsigned int rank, workers;
    unsigned long long timeout_ns, epoch;
    int takes_host_tensors;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O!IOOKIKp", names_of(names), layout_type, &layout, &rank,
                                     &windows, &peer_pidfds, &timeout_ns, &workers, &epoch, &takes_host_tensors))
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
    native.rank = rank;
    native.epoch = epoch;
    return made.release();
}

bool add_session_type(PyObject *module) {
    static PyStructSequence_Field fault_fields[] = {{"result", nullptr}, {"culprit", nullptr}, {"step", nullptr},
                                                    {"cause", nullptr},  {"epoch", nullptr},   {"detail", nullptr},
                                                    {nullptr, nullptr}};
    static PyStructSequence_Desc fault_description = {"sglang_ascend_moe._host_kernels.Found",
                                                      "ExchangeFault of exchange.h.", fault_fields, 6};
    static PyGetSetDef attributes[] = {{"address", address, nullptr, nullptr, nullptr},
                                       {"rank", rank, nullptr, nullptr, nullptr},
                                       {"step", step, nullptr, nullptr, nullptr},
                                       {"epoch", epoch, nullptr, nullptr, nullptr},
                                       {"waited_ns", waited_ns, nullptr, nullptr, nullptr},
                                       {"missing", missing, nullptr, nullptr, nullptr},
                                       {"fault", fault, nullptr, nullptr, nullptr},
                                       {"refusal", refusal, nullptr, nullptr, nullptr},
                                       {"inherited", inherited, nullptr, nullptr, nullptr},
                                       {"on_step", on_step, set_on_step, nullptr, nullptr},
                                       {}};
    static PyMethodDef methods[] = {method("new_call", new_call, METH_FASTCALL),
                                    method("refuse", refuse, METH_VARARGS),
                                    method("plan", plan, METH_VARARGS),
                                    method("count_chunks", count_chunks, METH_VARARGS),
                                    method("leave", leave, METH_VARARGS),
                                    method("disown", disown, METH_NOARGS),
                                    method("open_device", open_device, METH_VARARGS),
                                    method("check_device", check_device, METH_NOARGS),
                                    method("close_device", close_device, METH_NOARGS),
                                    {}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, slot(destroy<Session>)},
        {Py_tp_traverse, slot(traverse)},
        {Py_tp_clear, slot(clear)},
        {Py_tp_getset, attributes},
        {Py_tp_methods, methods},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Session", sizeof(Object<Session>), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    fault_type = PyStructSequence_NewType(&fault_description);
    session_type = reinterpret_cast<PyTypeObject *>(PyType_FromSpec(&spec));
    return fault_type != nullptr && session_type != nullptr && PyModule_AddType(module, fault_type) == 0 &&
           PyModule_AddType(module, session_type) == 0;
}

} // namespace binding
