// What a Session can be asked to do.
#pragma once

#include "objects.h"

namespace binding {

PyMethodDef *session_methods();

} // namespace binding
