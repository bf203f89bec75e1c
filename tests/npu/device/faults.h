// Host code that reads or writes memory of the emulated NPU directly: a fault, which is reported as what it is.
#pragma once

namespace emulated_npu {

// How the process ends then.
constexpr int host_access_exit_code = 86;

void report_host_accesses();
// A signal whose handler writes what Python is doing to the standard error; 0 for none.
void set_traceback_signal(int number);

} // namespace emulated_npu
