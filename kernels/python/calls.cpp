// The way from Python into the kernels: what every call does, in as few instructions as it can be done.
//
// Between two layers a processor's caches are filled with weights, so each line of code and each Python object on this
// way comes out of memory again; docs/kernels-host.md says what that costs.
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <cstdint>
#include <cstring>

#include "dlpack.h"
#include "exchange.h"

namespace {

// A call, and the functions that make it; `Call` of sglang_ascend_moe/native/abi.py.
struct Call {
    ExchangeDispatch dispatch;
    ExchangeCombine combine;
    ExchangeSession *session;
    int (*run_dispatch)(ExchangeSession *, ExchangeDispatch *);
    int (*run_combine)(ExchangeSession *, const ExchangeCombine *);
};

PyTypeObject *tensor_type = nullptr;
int (*describe)(void *, dlpack::Tensor *) = nullptr;

struct Matrix : dlpack::Tensor {
    // Whether `tensor` is a matrix in the memory of the host with `columns` columns and dense rows.
    bool of(PyObject *tensor, int64_t columns) {
        if (describe == nullptr || Py_TYPE(tensor) != tensor_type)
            return false;
        if (describe(tensor, this) != 0) {
            PyErr_Clear();
            return false;
        }
        return device_type == dlpack::cpu && dimensions == 2 && shape[1] == columns && strides[1] == 1;
    }
    bool has_type(dlpack::TypeCode wanted, uint8_t wanted_bits) const { return code == wanted && bits == wanted_bits; }
    bool holds_elements(uint32_t element) const {
        return element == EXCHANGE_BF16   ? has_type(dlpack::bfloat, 16)
               : element == EXCHANGE_FP16 ? has_type(dlpack::floating, 16)
                                          : has_type(dlpack::floating, 32);
    }
    bool is_contiguous() const { return strides[0] == shape[1] || shape[0] <= 1; }
    void *begin() const { return static_cast<uint8_t *>(data) + byte_offset; }
    uint64_t stride_bytes() const { return static_cast<uint64_t>(strides[0]) * (bits / 8); }
};

struct Input {
    Matrix x, ids, weights;
    // Whether the three are as the kernels take them, so that nothing has to be copied or refused.
    bool of(PyObject *const *tensors, const ExchangeLayout &layout) {
        return x.of(tensors[0], layout.hidden) && x.holds_elements(layout.element) && ids.of(tensors[1], layout.topk) &&
               ids.is_contiguous() && (ids.has_type(dlpack::integer, 64) || ids.has_type(dlpack::integer, 32)) &&
               weights.of(tensors[2], layout.topk) && weights.is_contiguous() &&
               weights.has_type(dlpack::floating, 32) && ids.shape[0] == x.shape[0] && weights.shape[0] == x.shape[0];
    }
};

bool expects(Py_ssize_t count, Py_ssize_t given) {
    if (given != count)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", count, given);
    return given == count;
}

struct Manner {
    uint32_t kind, part;
    bool keep_weights, continues;
};

// Points a call at tensors [x, ids, weights]; false, and nothing done, if they do not fit.
bool point(Call &call, PyObject *const *tensors, const Manner &manner) {
    Input input;
    if (!input.of(tensors, *call.session->layout))
        return false;
    ExchangeDispatch &dispatch = call.dispatch;
    ExchangeCombine &combine = call.combine;
    dispatch.x = input.x.begin();
    dispatch.x_stride = input.x.stride_bytes();
    dispatch.tokens = combine.tokens = static_cast<uint32_t>(input.x.shape[0]);
    dispatch.ids = input.ids.begin();
    dispatch.ids_bytes = input.ids.bits / 8;
    dispatch.kind = manner.kind;
    dispatch.part = combine.part = manner.part;
    combine.positions = dispatch.positions; // a combine may have been given others
    const auto *weights = static_cast<const float *>(input.weights.begin());
    dispatch.weights = manner.keep_weights ? weights : nullptr;
    combine.weights = manner.keep_weights ? dispatch.kept_weights : weights;
    dispatch.continues = manner.continues;
    dispatch.row_bytes = 0;
    return true;
}

uint32_t number(PyObject *argument) { return static_cast<uint32_t>(PyLong_AsLong(argument)); }

// take(call, x, ids, weights, kind, part, keep_weights, continues)
PyObject *take(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(8, count))
        return nullptr;
    auto &call = *static_cast<Call *>(PyLong_AsVoidPtr(arguments[0]));
    const Manner manner = {number(arguments[4]), number(arguments[5]), arguments[6] == Py_True,
                           arguments[7] == Py_True};
    return PyBool_FromLong(point(call, arguments + 1, manner));
}

// take_out(call, out)
PyObject *take_out(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(2, count))
        return nullptr;
    auto &call = *static_cast<Call *>(PyLong_AsVoidPtr(arguments[0]));
    const ExchangeLayout &layout = *call.session->layout;
    Matrix out;
    if (!out.of(arguments[1], layout.hidden) || !out.holds_elements(layout.element) ||
        out.shape[0] != call.combine.tokens)
        Py_RETURN_FALSE;
    call.combine.out = out.begin();
    call.combine.out_stride = out.stride_bytes();
    Py_RETURN_TRUE;
}

// A signal handler may have raised while the kernel waited.
PyObject *result_of(int result) { return PyErr_Occurred() != nullptr ? nullptr : PyLong_FromLong(result); }

int run(Call &call) {
    const ExchangeDispatch &done = call.dispatch;
    const int result = call.run_dispatch(call.session, &call.dispatch);
    // What combine needs to know of it.
    call.combine.epoch = done.epoch;
    call.combine.slot = done.slot;
    call.combine.first_row = done.first_row;
    call.combine.total = done.total;
    return result;
}

// dispatch(call)
PyObject *dispatch(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(1, count))
        return nullptr;
    return result_of(run(*static_cast<Call *>(PyLong_AsVoidPtr(arguments[0]))));
}

// dispatch_fitting(call, x, ids, weights, kind)
PyObject *dispatch_fitting(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(5, count))
        return nullptr;
    auto &call = *static_cast<Call *>(PyLong_AsVoidPtr(arguments[0]));
    if (!point(call, arguments + 1, {number(arguments[4]), EXCHANGE_WHOLE, true, false}))
        Py_RETURN_NONE;
    const int result = run(call);
    if (result != EXCHANGE_OK || PyErr_Occurred() != nullptr)
        return result_of(result);
    const ExchangeDispatch &done = call.dispatch;
    return Py_BuildValue("(KIIK)", static_cast<unsigned long long>(done.epoch), done.slot, done.tokens,
                         static_cast<unsigned long long>(done.total));
}

// combine(call)
PyObject *combine(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    if (!expects(1, count))
        return nullptr;
    const auto &call = *static_cast<Call *>(PyLong_AsVoidPtr(arguments[0]));
    return result_of(call.run_combine(call.session, &call.combine));
}

template <PyObject *(*Function)(PyObject *, PyObject *const *, Py_ssize_t)>
PyMethodDef method(const char *name, const char *help) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Function)), METH_FASTCALL, help};
}

PyMethodDef methods[] = {
    method<take>("take", "take(call, x, ids, weights, kind, part, keep_weights, continues): points a call at tensors; "
                         "False if they do not fit."),
    method<take_out>("take_out", "take_out(call, out): points a call at its result; False if it does not fit."),
    method<dispatch>("dispatch", "dispatch(call): its result."),
    method<dispatch_fitting>("dispatch_fitting",
                             "dispatch_fitting(call, x, ids, weights, kind): take and dispatch of a "
                             "whole slot. (epoch, slot, tokens, total), or the result if it is not "
                             "OK, or None if the tensors do not fit."),
    method<combine>("combine", "combine(call): its result."),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_host_kernels",
                      "Calls into the kernels. Addresses are those of the structs of abi.py.",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

// Finds out how torch describes tensors. Where it is too old for that, no tensor fits.
bool find_describe() {
    PyObject *torch = PyImport_ImportModule("torch");
    if (torch == nullptr)
        return false;
    PyObject *type = PyObject_GetAttrString(torch, "Tensor");
    Py_DECREF(torch);
    if (type == nullptr)
        return false;
    tensor_type = reinterpret_cast<PyTypeObject *>(type);
    PyObject *capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
        PyErr_Clear();
        return true;
    }
    const auto *api = static_cast<const dlpack::ExchangeApi *>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
    if (api == nullptr)
        return false;
    if (api->major == dlpack::major_version)
        describe = api->describe;
    return true;
}

} // namespace

PyMODINIT_FUNC PyInit__host_kernels() { return find_describe() ? PyModule_Create(&module) : nullptr; }
