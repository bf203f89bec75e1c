#include "tensors.h"

namespace binding {
namespace {

PyTypeObject *tensor_type = nullptr;
int (*describe)(void *, dlpack::Tensor *) = nullptr;

// The number that a method of `tensor` returns.
template <class... Arguments>
bool ask_number(PyObject *tensor, uint64_t &number, const char *method, Arguments... arguments) {
    const Reference answer(PyObject_CallMethod(tensor, method, arguments...));
    if (!answer)
        return false;
    number = PyLong_AsUnsignedLongLong(answer.get());
    return PyErr_Occurred() == nullptr;
}

} // namespace

bool Matrix::of(PyObject *tensor, int64_t columns) {
    if (describe == nullptr || Py_TYPE(tensor) != tensor_type)
        return false;
    if (describe(tensor, this) != 0) {
        PyErr_Clear();
        return false;
    }
    return device_type == dlpack::cpu && dimensions == 2 && shape[1] == columns && strides[1] == 1;
}

bool Rows::ask(PyObject *tensor) {
    uint64_t address, elements, count, bytes;
    if (!ask_number(tensor, address, "data_ptr", nullptr) || !ask_number(tensor, elements, "stride", "i", 0) ||
        !ask_number(tensor, count, "size", "i", 0) || !ask_number(tensor, bytes, "element_size", nullptr))
        return false;
    *this = {reinterpret_cast<void *>(address), elements * bytes, static_cast<uint32_t>(count),
             static_cast<uint32_t>(bytes)};
    return true;
}

void *address_of(PyObject *tensor) {
    uint64_t address;
    return ask_number(tensor, address, "data_ptr", nullptr) ? reinterpret_cast<void *>(address) : nullptr;
}

bool find_torch() {
    const Reference torch(PyImport_ImportModule("torch"));
    Reference type(torch ? PyObject_GetAttrString(torch.get(), "Tensor") : nullptr);
    if (!type)
        return false;
    tensor_type = reinterpret_cast<PyTypeObject *>(type.get());
    const Reference capsule(PyObject_GetAttrString(type.release(), "__dlpack_c_exchange_api__"));
    if (!capsule) {
        PyErr_Clear();
        return true;
    }
    const auto *api =
        static_cast<const dlpack::ExchangeApi *>(PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api"));
    if (api != nullptr && api->major == dlpack::major_version)
        describe = api->describe;
    return api != nullptr;
}

} // namespace binding
