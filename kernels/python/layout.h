// ExchangeLayout as a Python type: made of one keyword argument per field.
#pragma once

#include "objects.h"

#include "exchange.h"

namespace binding {

extern PyTypeObject *layout_type; // of Object<ExchangeLayout>

bool add_layout_type(PyObject *module);

} // namespace binding
