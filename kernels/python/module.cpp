// The way from Python into the kernels, those of this library and those of any other with the same C ABI. What the
// types have, and how it is called: sglang_ascend_moe/_host_kernels.pyi.
#include "objects.h"

#include "call.h"
#include "counters.h"
#include "layout.h"
#include "library.h"
#include "session.h"
#include "slots.h"
#include "tensors.h"

namespace {

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_host_kernels",
                      "Calls into kernels with the C ABI of exchange.h.",
                      -1,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

} // namespace

PyMODINIT_FUNC PyInit__host_kernels() {
    using namespace binding;
    Reference made(PyModule_Create(&module));
    const bool complete = made && find_torch() && add_layout_type(made.get()) && add_library_type(made.get()) &&
                          add_session_type(made.get()) && add_call_type(made.get()) && add_counters_type(made.get()) &&
                          add_slots_types(made.get());
    return complete ? made.release() : nullptr;
}
