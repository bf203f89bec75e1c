#include "layout.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace binding {

PyTypeObject *layout_type = nullptr;

namespace {

struct Field {
    const char *name;
    size_t offset;
    size_t bytes;
};

#define FIELD(name) {#name, offsetof(ExchangeLayout, name), sizeof(ExchangeLayout::name)}
constexpr Field fields[] = {
    FIELD(ranks),       FIELD(experts),       FIELD(hidden),        FIELD(topk),        FIELD(max_tokens),
    FIELD(slots),       FIELD(element),       FIELD(distinct_topk), FIELD(count_units), FIELD(verify),
    FIELD(quantised),   FIELD(granting),      FIELD(counted),       FIELD(capacity),    FIELD(expert_rows),
    FIELD(row_bytes),   FIELD(out_row_bytes), FIELD(mailbox_bytes), FIELD(state),       FIELD(status),
    FIELD(records),     FIELD(grants),        FIELD(mailboxes),     FIELD(arrive),      FIELD(done),
    FIELD(rows),        FIELD(scales),        FIELD(out),           FIELD(row_checks),  FIELD(out_checks),
    FIELD(total_bytes),
};
#undef FIELD

constexpr size_t bytes_of_all_fields() {
    size_t bytes = sizeof(ExchangeLayout::abi_version);
    for (const Field &field : fields)
        bytes += field.bytes;
    return bytes;
}
static_assert(bytes_of_all_fields() == sizeof(ExchangeLayout), "a field of ExchangeLayout is not in the table");

bool is_field(PyObject *name) {
    for (const Field &field : fields)
        if (PyUnicode_CompareWithASCIIString(name, field.name) == 0)
            return true;
    return false;
}

// Whether every name that was given is that of a field.
bool are_fields(PyObject *named) {
    PyObject *name, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(named, &position, &name, &value))
        if (!is_field(name)) {
            PyErr_Format(PyExc_TypeError, "a layout has no field %R", name);
            return false;
        }
    return true;
}

bool write(const Field &field, PyObject *named, uint8_t *layout) {
    PyObject *given = named == nullptr ? nullptr : PyDict_GetItemString(named, field.name);
    if (given == nullptr) {
        PyErr_Format(PyExc_TypeError, "the field '%s' of a layout is missing", field.name);
        return false;
    }
    const uint64_t number = PyLong_AsUnsignedLongLong(given);
    if (PyErr_Occurred() != nullptr)
        return false;
    if (field.bytes == sizeof(uint32_t) && number > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "%s=%R does not fit its 32 bits", field.name, given);
        return false;
    }
    // The machine is little-endian, or loads and stores of the exchange's words would not work either.
    memcpy(layout + field.offset, &number, field.bytes);
    return true;
}

PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    if (!expects(0, PyTuple_Size(arguments)))
        return nullptr;
    Reference made = create<ExchangeLayout>(type);
    if (!made)
        return nullptr;
    auto &layout = value_of<ExchangeLayout>(made.get());
    layout.abi_version = EXCHANGE_ABI_VERSION;
    for (const Field &field : fields)
        if (!write(field, named, reinterpret_cast<uint8_t *>(&layout)))
            return nullptr;
    return are_fields(named) ? made.release() : nullptr;
}

PyObject *read(PyObject *self, void *closure) {
    const auto &field = *static_cast<const Field *>(closure);
    uint64_t number = 0;
    memcpy(&number, reinterpret_cast<const uint8_t *>(&value_of<ExchangeLayout>(self)) + field.offset, field.bytes);
    return PyLong_FromUnsignedLongLong(number);
}

PyObject *as_bytes(PyObject *self, PyObject *) {
    const auto &layout = value_of<ExchangeLayout>(self);
    return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(&layout), sizeof layout);
}

auto getters() {
    std::array<PyGetSetDef, std::size(fields) + 1> all = {};
    for (size_t i = 0; i < std::size(fields); ++i)
        all[i] = {fields[i].name, read, nullptr, nullptr, const_cast<Field *>(&fields[i])};
    return all;
}

} // namespace

bool add_layout_type(PyObject *module) {
    static auto attributes = getters();
    static PyMethodDef methods[] = {method("__bytes__", as_bytes, METH_NOARGS), {}};
    static PyType_Slot slots[] = {
        {Py_tp_new, slot(make)},
        {Py_tp_dealloc, slot(destroy<ExchangeLayout>)},
        {Py_tp_getset, attributes.data()},
        {Py_tp_methods, methods},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Layout", sizeof(Object<ExchangeLayout>), 0,
                               Py_TPFLAGS_DEFAULT, slots};
    return add_type(module, layout_type, spec);
}

} // namespace binding
