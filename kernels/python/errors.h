#pragma once

#include "objects.h"

namespace binding {

// Raises `name` of sglang_ascend_moe/errors.py, with a message formatted as PyErr_Format does.
void raise_own(const char *name, const char *format, ...);

} // namespace binding
