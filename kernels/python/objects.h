// What the types of this module are made of: a C++ value inside a Python object. Of Python only the stable ABI is used.
#pragma once

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <new>
#include <utility>

namespace binding {

// Owns a reference to a Python object, or to none.
class Reference {
  public:
    Reference() = default;
    explicit Reference(PyObject *owned) : object_(owned) {}
    static Reference to(PyObject *borrowed) {
        Py_XINCREF(borrowed);
        return Reference(borrowed);
    }
    Reference(Reference &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Reference &operator=(Reference &&other) noexcept {
        PyObject *before = std::exchange(object_, std::exchange(other.object_, nullptr));
        Py_XDECREF(before);
        return *this;
    }
    ~Reference() { Py_XDECREF(object_); }
    PyObject *get() const { return object_; }
    PyObject *release() { return std::exchange(object_, nullptr); }
    explicit operator bool() const { return object_ != nullptr; }

  private:
    PyObject *object_ = nullptr;
};

template <class Value> struct Object {
    PyObject head;
    Value value;
};

template <class Value> Value &value_of(PyObject *object) { return reinterpret_cast<Object<Value> *>(object)->value; }

template <class Value> Reference create(PyTypeObject *type) {
    const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    Reference made(allocate(type, 0));
    if (made)
        new (&value_of<Value>(made.get())) Value();
    return made;
}

template <class Value> void destroy(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_GC))
        PyObject_GC_UnTrack(object);
    value_of<Value>(object).~Value();
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

inline bool append(const Reference &list, const Reference &entry) {
    return entry && PyList_Append(list.get(), entry.get()) == 0;
}

template <class Number> Reference as_list(const Number *numbers, size_t count) {
    Reference list(PyList_New(0));
    for (size_t i = 0; i < count; ++i)
        if (!list || !append(list, Reference(PyLong_FromUnsignedLongLong(numbers[i]))))
            return Reference();
    return list;
}

// Makes a type that stays, and puts it into the module.
inline bool add_type(PyObject *module, PyTypeObject *&type, PyType_Spec &spec) {
    type = reinterpret_cast<PyTypeObject *>(PyType_FromSpec(&spec));
    return type != nullptr && PyModule_AddType(module, type) == 0;
}

// A slot of a type, for PyType_Slot.
template <class Function> void *slot(Function *function) { return reinterpret_cast<void *>(function); }

// An entry of a method table; `flags` say how Python hands over arguments, and so what `function` has to be.
template <class Function> PyMethodDef method(const char *name, Function *function, int flags) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), flags, nullptr};
}

// An attribute that is read at `offset` of the object, by its type of structmember.h.
inline PyMemberDef member(const char *name, int type, size_t offset, int flags = READONLY) {
    return {name, type, static_cast<Py_ssize_t>(offset), flags, nullptr};
}

// An attribute that is computed.
inline PyGetSetDef attribute(const char *name, getter get, setter set = nullptr) {
    return {name, get, set, nullptr, nullptr};
}

inline bool expects(Py_ssize_t count, Py_ssize_t given) {
    if (given != count)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", count, given);
    return given == count;
}

// PyArg_ParseTupleAndKeywords takes names that it does not change as if it did.
template <size_t Count> char **names_of(const char *const (&names)[Count]) { return const_cast<char **>(names); }

} // namespace binding
