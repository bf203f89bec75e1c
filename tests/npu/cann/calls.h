// What functions of CANN over the emulated NPU are made of.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <acl/acl.h>

namespace cann_calls {

// `code`, with what aclGetRecentErrMsg says of it to the calling thread.
aclError refuse(aclError code, const std::string &text);
// Puts work on a stream. `bytes`: how many it moves; `addresses`: memory of the device that it uses.
aclError put(aclrtStream stream, const char *name, uint64_t bytes, std::function<void()> run,
             const std::vector<const void *> &addresses = {});

} // namespace cann_calls
