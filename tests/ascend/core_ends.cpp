// Cores of one launch that do nothing but end, each with a finding: what core 0 makes of them.
#include <string>

#include "control.h"
#include "pages.h"

namespace {

using namespace ascend_kernels;
using ascend_model::Region;

uint64_t address_of(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

} // namespace

// What a test lets end: `left` stands in every line before, core `silent` says nothing.
struct CoreEnds {
    const uint32_t *results, *culprits; // by core
    uint64_t stamp, left, timeout_cycles;
    uint32_t cores, silent, rank;
    uint32_t result, culprit; // out: of core 0's verdict
};

extern "C" [[gnu::visibility("default")]] const char *end_cores(CoreEnds *given) {
    static std::string said;
    ExchangeLayout layout = {};
    layout.ranks = 1;
    const uint64_t workspace_bytes = VerdictOffset(verdict_stages, 0, given->cores);
    const uint64_t ends_bytes = uint64_t{given->cores} * EXCHANGE_LINE_BYTES;
    ascend_model::Pages<uint8_t> workspace(workspace_bytes), ends(ends_bytes);
    for (uint64_t line = 0; line < ends_bytes; line += EXCHANGE_LINE_BYTES)
        memcpy(ends.data() + line, &given->left, sizeof given->left);

    KernelArguments arguments = {};
    arguments.layout = layout;
    arguments.workspace = address_of(workspace.data());
    arguments.ends = address_of(ends.data());
    arguments.timeout_cycles = given->timeout_cycles;
    arguments.rank = given->rank;
    ascend_model::Device device;
    device.launch(given->cores,
                  {{"workspace", Region::workspace, arguments.workspace, workspace_bytes, 0, false, false},
                   {"ends", Region::ends, arguments.ends, ends_bytes, 0, true, false}},
                  [given, &arguments] {
                      TPipe pipe;
                      Control control;
                      control.Init(pipe, arguments);
                      const uint32_t core = control.core();
                      const Verdict found = control.Fault(given->results[core], given->culprits[core]);
                      if (core == 0) {
                          const Verdict verdict = control.WaitForEnds(given->stamp, found);
                          given->result = verdict.result;
                          given->culprit = verdict.culprit;
                      } else if (core != given->silent) {
                          control.StoreEnd(given->stamp, found);
                      }
                  });
    said = device.violation();
    return said.c_str();
}
