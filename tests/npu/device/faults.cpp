#include "faults.h"

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <execinfo.h>
#include <ucontext.h>
#include <unistd.h>

#include "memory.h"

namespace emulated_npu {
namespace {

struct sigaction before;
volatile sig_atomic_t traceback_signal = 0;
volatile sig_atomic_t sent_on = 0;

void write_text(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        return;
}

const char *access_of([[maybe_unused]] const void *context) {
#if defined(__x86_64__)
    constexpr long long wrote = 2; // of the error code of a page fault
    return (static_cast<const ucontext_t *>(context)->uc_mcontext.gregs[REG_ERR] & wrote) != 0 ? "wrote" : "read";
#else
    return "read or wrote";
#endif
}

void handle(int number, siginfo_t *information, void *context) {
    // Another handler (Python's faulthandler) has reported and raises the signal anew: the access faults again.
    if (information->si_code <= 0 && sent_on == 0) {
        sent_on = 1;
        return;
    }
    if (information->si_code > 0 && shadow(information->si_addr) != nullptr) {
        char text[128];
        snprintf(text, sizeof text, "host code %s memory of the emulated NPU at %p\n", access_of(context),
                 information->si_addr);
        write_text(text);
        if (traceback_signal != 0)
            raise(traceback_signal);
        void *frames[64];
        backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
        _exit(host_access_exit_code);
    }
    sigaction(number, &before, nullptr);
    if (information->si_code <= 0)
        raise(number);
}

} // namespace

void report_host_accesses() {
    void *frame[1];
    backtrace(frame, 1); // loads what the handler may not load
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
}

void set_traceback_signal(int number) { traceback_signal = number; }

} // namespace emulated_npu
