#include "library.h"

#include <cstddef>

#include <dlfcn.h>

#include "errors.h"
#include "layout.h"
#include "session.h"

namespace binding {

namespace {

template <class Function> bool find_optional(void *handle, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    return function != nullptr;
}

template <class Function> bool find(void *handle, const char *name, Function &function) {
    if (find_optional(handle, name, function))
        return true;
    PyErr_SetString(PyExc_OSError, dlerror());
    return false;
}

bool has_abi(void *handle) {
    decltype(&exchange_abi_version) abi_version;
    if (!find(handle, "exchange_abi_version", abi_version))
        return false;
    const uint32_t found = abi_version();
    if (found != EXCHANGE_ABI_VERSION)
        raise_own("ProtocolMismatch", "kernels have ABI %u, the package expects %u; rebuild the kernels", found,
                  EXCHANGE_ABI_VERSION);
    return found == EXCHANGE_ABI_VERSION;
}

bool find_host_functions(void *handle, Functions &functions) {
    find_optional(handle, "exchange_refuse_layout", functions.refuse_layout);
    return find(handle, "exchange_select_kernels", functions.select_kernels) &&
           find(handle, "exchange_selected_kernels", functions.selected_kernels) &&
           find(handle, "exchange_initialise", functions.initialise) &&
           find(handle, "exchange_dispatch", functions.dispatch) &&
           find(handle, "exchange_dispatch_send", functions.dispatch_send) &&
           find(handle, "exchange_dispatch_receive", functions.dispatch_receive) &&
           find(handle, "exchange_rejoin", functions.rejoin) && find(handle, "exchange_combine", functions.combine) &&
           find(handle, "exchange_combine_send", functions.combine_send) &&
           find(handle, "exchange_combine_receive", functions.combine_receive) &&
           find(handle, "exchange_plan", functions.plan) && find(handle, "exchange_refuse", functions.refuse) &&
           find(handle, "exchange_leave", functions.leave) &&
           find(handle, "exchange_count_chunks", functions.count_chunks);
}

// Of a library that is for no device there is nothing to find.
bool find_device_functions(void *handle, Functions &functions) {
    decltype(&exchange_device_abi_version) abi_version;
    if (!find_optional(handle, "exchange_device_abi_version", abi_version))
        return true;
    const uint32_t found = abi_version();
    if (found != EXCHANGE_DEVICE_ABI_VERSION) {
        raise_own("ProtocolMismatch",
                  "the Ascend kernels have device ABI %u, the package expects %u; run `ascend-moe build-kernels` again",
                  found, EXCHANGE_DEVICE_ABI_VERSION);
        return false;
    }
    return find(handle, "exchange_device_open", functions.device_open) &&
           find(handle, "exchange_device_check", functions.device_check) &&
           find(handle, "exchange_device_fetched", functions.device_fetched) &&
           find(handle, "exchange_device_forget", functions.device_forget) &&
           find(handle, "exchange_device_close", functions.device_close) &&
           find(handle, "exchange_device_trace", functions.device_trace);
}

// Library(path). The library stays loaded as long as the process lives.
PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    static const char *const names[] = {"path", nullptr};
    PyObject *encoded = nullptr;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O&", names_of(names), PyUnicode_FSConverter, &encoded))
        return nullptr;
    const Reference path(encoded);
    void *handle = dlopen(PyBytes_AsString(path.get()), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        PyErr_SetString(PyExc_OSError, dlerror());
        return nullptr;
    }
    Reference made = create<Library>(type);
    if (!made)
        return nullptr;
    auto &library = value_of<Library>(made.get());
    library.path = Reference(PyUnicode_DecodeFSDefault(PyBytes_AsString(path.get())));
    const bool usable = library.path && has_abi(handle) && find_host_functions(handle, library.functions) &&
                        find_device_functions(handle, library.functions);
    return usable ? made.release() : nullptr;
}

// select_kernels(name)
PyObject *select_kernels(PyObject *self, PyObject *name) {
    const Functions &functions = value_of<Library>(self).functions;
    const char *text = nullptr;
    if (name != Py_None && (text = PyUnicode_AsUTF8AndSize(name, nullptr)) == nullptr)
        return nullptr;
    if (functions.select_kernels(text) != 0)
        Py_RETURN_NONE;
    return PyUnicode_FromString(functions.selected_kernels());
}

// refuse_layout(layout)
PyObject *refuse_layout(PyObject *self, PyObject *layout) {
    const Functions &functions = value_of<Library>(self).functions;
    if (!PyObject_TypeCheck(layout, layout_type))
        return PyErr_Format(PyExc_TypeError, "%R is no Layout", layout);
    const char *refusal =
        functions.refuse_layout == nullptr ? nullptr : functions.refuse_layout(&value_of<ExchangeLayout>(layout));
    if (refusal == nullptr)
        Py_RETURN_NONE;
    return PyUnicode_FromString(refusal);
}

// initialise_window(layout, address, first_epoch)
PyObject *initialise_window(PyObject *self, PyObject *arguments) {
    PyObject *layout;
    unsigned long long address, first_epoch;
    if (!PyArg_ParseTuple(arguments, "O!KK", layout_type, &layout, &address, &first_epoch))
        return nullptr;
    value_of<Library>(self).functions.initialise(&value_of<ExchangeLayout>(layout), reinterpret_cast<void *>(address),
                                                 first_epoch);
    Py_RETURN_NONE;
}

} // namespace

bool add_library_type(PyObject *module) {
    static PyMemberDef members[] = {member("path", T_OBJECT_EX, offsetof(Object<Library>, value.path)), {}};
    static PyMethodDef methods[] = {method("select_kernels", select_kernels, METH_O),
                                    method("refuse_layout", refuse_layout, METH_O),
                                    method("initialise_window", initialise_window, METH_VARARGS),
                                    method("open_session", open_session, METH_VARARGS | METH_KEYWORDS),
                                    {}};
    static PyType_Slot slots[] = {
        {Py_tp_new, slot(make)},
        {Py_tp_dealloc, slot(destroy<Library>)},
        {Py_tp_members, members},
        {Py_tp_methods, methods},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Library", sizeof(Object<Library>), 0,
                               Py_TPFLAGS_DEFAULT, slots};
    const Reference type(PyType_FromSpec(&spec));
    return type && PyModule_AddType(module, reinterpret_cast<PyTypeObject *>(type.get())) == 0;
}

} // namespace binding
