// The slots of one rank's window as a Python type, and a ticket for the rows of each dispatch.
#pragma once

#include "objects.h"

namespace binding {

bool add_slots_types(PyObject *module);

} // namespace binding
