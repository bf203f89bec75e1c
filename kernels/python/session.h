// One rank's open exchange as a Python type. It owns everything that ExchangeSession points at but windows.
#pragma once

#include "objects.h"

#include <cstdint>
#include <vector>

#include "library.h"

namespace binding {

struct Session {
    Reference library; // whose functions these are
    Functions functions;
    ExchangeLayout layout;
    std::vector<void *> windows;
    std::vector<int32_t> peer_pidfds;
    std::vector<uint8_t> missing, ended;
    std::vector<uint64_t> waited_ns;
    ExchangeSession native;
    Reference on_step;       // called with each step as it begins, or none
    bool takes_host_tensors; // whether calls may point at tensors in the memory of the host as they are
    bool inherited;          // whether this process was forked from the one that opened the session
};

// What the kernels said, for Python. What a step hook or a signal handler raised meanwhile is raised.
inline PyObject *result_of(int result) { return PyErr_Occurred() != nullptr ? nullptr : PyLong_FromLong(result); }

// Calls a function of the kernels; not in a process that was forked, which must not touch the windows.
template <class Function, class... Arguments> int run(Session &session, Function function, Arguments... arguments) {
    return session.inherited ? EXCHANGE_POISONED : function(&session.native, arguments...);
}

// open_session(...) of a Library.
PyObject *open_session(PyObject *library, PyObject *arguments, PyObject *named);

bool add_session_type(PyObject *module);

} // namespace binding
