#include "errors.h"

#include <cstdarg>

namespace binding {

void raise_own(const char *name, const char *format, ...) {
    const Reference errors(PyImport_ImportModule("sglang_ascend_moe.errors"));
    const Reference type(errors ? PyObject_GetAttrString(errors.get(), name) : nullptr);
    if (!type)
        return;
    va_list values;
    va_start(values, format);
    PyErr_FormatV(type.get(), format, values);
    va_end(values);
}

} // namespace binding
