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
    PyObject_HEAD;
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

// A slot of a type, for PyType_Slot.
template <class Function> void *slot(Function *function) { return reinterpret_cast<void *>(function); }

// Entries of a method table, by how Python hands over arguments.
using NoArguments = PyObject *(*)(PyObject *self, PyObject *);
using OneArgument = PyObject *(*)(PyObject *self, PyObject *argument);
using Positional = PyObject *(*)(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
using PositionalAndNamed = PyObject *(*)(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);
using Parsed = PyObject *(*)(PyObject *self, PyObject *arguments, PyObject *named);

template <class Function> PyMethodDef entry(const char *name, Function function, int flags, const char *help) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), flags, help};
}
inline PyMethodDef without_arguments(const char *name, NoArguments function, const char *help) {
    return entry(name, function, METH_NOARGS, help);
}
inline PyMethodDef with_one_argument(const char *name, OneArgument function, const char *help) {
    return entry(name, function, METH_O, help);
}
inline PyMethodDef with_arguments(const char *name, Positional function, const char *help) {
    return entry(name, function, METH_FASTCALL, help);
}
inline PyMethodDef with_names(const char *name, PositionalAndNamed function, const char *help) {
    return entry(name, function, METH_FASTCALL | METH_KEYWORDS, help);
}
inline PyMethodDef with_parsing(const char *name, Parsed function, const char *help) {
    return entry(name, function, METH_VARARGS | METH_KEYWORDS, help);
}

inline bool expects(Py_ssize_t count, Py_ssize_t given) {
    if (given != count)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", count, given);
    return given == count;
}

// PyArg_ParseTupleAndKeywords takes names that it does not change as if it did.
template <size_t Count> char **names_of(const char *const (&names)[Count]) { return const_cast<char **>(names); }

} // namespace binding
