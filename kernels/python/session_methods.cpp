#include "session_methods.h"

#include <algorithm>
#include <vector>

#include "call.h"
#include "session.h"
#include "step_trace.h"
#include "tensors.h"

namespace binding {
namespace {

// new_call(positions, weights, counts, matrix, totals)
PyObject *new_call(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    return expects(5, count) ? make_call(self, {arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]})
                             : nullptr;
}

// refuse(kind, problem)
PyObject *refuse(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    unsigned int kind;
    const char *text;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(arguments, "Is#", &kind, &text, &bytes))
        return nullptr;
    auto sent = static_cast<uint32_t>(std::min<Py_ssize_t>(bytes, EXCHANGE_REFUSAL_BYTES));
    // Not within a character of UTF-8; `text` has a terminator.
    while ((text[sent] & 0xc0) == 0x80)
        --sent;
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
    std::vector<uint32_t> rows((uint64_t{ids.rows} + chunk_tokens - 1) / chunk_tokens * session.layout.ranks);
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

// trace(address)
PyObject *trace(PyObject *self, PyObject *address) {
    void *ring = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred() != nullptr)
        return nullptr;
    value_of<Session>(self).native.trace = static_cast<ExchangeTrace *>(ring);
    Py_RETURN_NONE;
}

// trace_layer(epoch, layer)
PyObject *trace_layer(PyObject *self, PyObject *arguments) {
    const auto &session = value_of<Session>(self);
    unsigned long long epoch;
    int layer;
    if (!PyArg_ParseTuple(arguments, "Ki", &epoch, &layer))
        return nullptr;
    if (session.native.trace != nullptr && !session.inherited)
        ascend_moe::trace_layer(*session.native.trace, epoch, layer);
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

// open_device(cores)
PyObject *open_device(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    unsigned int cores;
    if (!PyArg_ParseTuple(arguments, "I", &cores) || !is_on_device(session))
        return nullptr;
    return result_of(run(session, session.functions.device_open, cores));
}

PyObject *check_device(PyObject *self, PyObject *) {
    auto &session = value_of<Session>(self);
    return is_on_device(session) ? result_of(run(session, session.functions.device_check)) : nullptr;
}

// check_fetched(place)
PyObject *check_fetched(PyObject *self, PyObject *arguments) {
    auto &session = value_of<Session>(self);
    unsigned int place;
    if (!PyArg_ParseTuple(arguments, "I", &place) || !is_on_device(session))
        return nullptr;
    return result_of(run(session, session.functions.device_fetched, place));
}

PyObject *forget_fault(PyObject *self, PyObject *) {
    auto &session = value_of<Session>(self);
    if (!is_on_device(session))
        return nullptr;
    session.functions.device_forget(&session.native);
    Py_RETURN_NONE;
}

// trace_device(address)
PyObject *trace_device(PyObject *self, PyObject *address) {
    auto &session = value_of<Session>(self);
    auto *ring = static_cast<ExchangeTrace *>(PyLong_AsVoidPtr(address));
    if (PyErr_Occurred() != nullptr || !is_on_device(session))
        return nullptr;
    return result_of(run(session, session.functions.device_trace, ring));
}

PyObject *close_device(PyObject *self, PyObject *) {
    auto &session = value_of<Session>(self);
    if (!is_on_device(session))
        return nullptr;
    if (!session.inherited)
        session.functions.device_close(&session.native);
    Py_RETURN_NONE;
}

} // namespace

PyMethodDef *session_methods() {
    static PyMethodDef methods[] = {method("new_call", new_call, METH_FASTCALL),
                                    method("refuse", refuse, METH_VARARGS),
                                    method("plan", plan, METH_VARARGS),
                                    method("count_chunks", count_chunks, METH_VARARGS),
                                    method("leave", leave, METH_VARARGS),
                                    method("trace", trace, METH_O),
                                    method("trace_layer", trace_layer, METH_VARARGS),
                                    method("disown", disown, METH_NOARGS),
                                    method("open_device", open_device, METH_VARARGS),
                                    method("check_device", check_device, METH_NOARGS),
                                    method("check_fetched", check_fetched, METH_VARARGS),
                                    method("forget_fault", forget_fault, METH_NOARGS),
                                    method("trace_device", trace_device, METH_O),
                                    method("close_device", close_device, METH_NOARGS),
                                    {}};
    return methods;
}

} // namespace binding
