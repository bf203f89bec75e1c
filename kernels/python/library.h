// A library with the C ABI of exchange.h as a Python type: that of the host, one for a device, one under test.
#pragma once

#include "objects.h"

#include "exchange_device.h"

namespace binding {

// What a library exports.
struct Functions {
    decltype(&exchange_select_kernels) select_kernels;
    decltype(&exchange_selected_kernels) selected_kernels;
    decltype(&exchange_initialise) initialise;
    decltype(&exchange_dispatch) dispatch;
    decltype(&exchange_dispatch_send) dispatch_send;
    decltype(&exchange_dispatch_receive) dispatch_receive;
    decltype(&exchange_rejoin) rejoin;
    decltype(&exchange_combine) combine;
    decltype(&exchange_combine_send) combine_send;
    decltype(&exchange_combine_receive) combine_receive;
    decltype(&exchange_plan) plan;
    decltype(&exchange_refuse) refuse;
    decltype(&exchange_leave) leave;
    decltype(&exchange_count_chunks) count_chunks;
    decltype(&exchange_refuse_layout) refuse_layout; // null: the kernels have no limits of their own
    // Null but in a library for a device.
    decltype(&exchange_device_open) device_open;
    decltype(&exchange_device_check) device_check;
    decltype(&exchange_device_fetched) device_fetched;
    decltype(&exchange_device_forget) device_forget;
    decltype(&exchange_device_close) device_close;
    decltype(&exchange_device_trace) device_trace;
};

struct Library {
    Reference path;
    Functions functions;
};

bool add_library_type(PyObject *module);

} // namespace binding
