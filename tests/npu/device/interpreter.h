// Waits of the host let Python's other threads run: work on a stream may be a Python function.
#pragma once

#include <Python.h>

namespace emulated_npu {

class OutsideInterpreter {
  public:
    OutsideInterpreter() : saved_(Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
    ~OutsideInterpreter() {
        if (saved_ != nullptr)
            PyEval_RestoreThread(saved_);
    }
    OutsideInterpreter(const OutsideInterpreter &) = delete;
    OutsideInterpreter &operator=(const OutsideInterpreter &) = delete;

  private:
    PyThreadState *saved_;
};

} // namespace emulated_npu
