// torch_npu queues what it launches: a call of CANN comes behind that only if it goes through the queue itself, or is
// made after the queue has been emptied. The emulated NPU queues nothing; what a real one could overtake is refused
// here.
#pragma once

#include <functional>

namespace torch_queue {

// Runs `launch` in the order of torch's launches.
int run_in_order(const std::function<int()> &launch);
// Everything that torch has queued for `stream` is on it.
void empty(void *stream);
// Whether what the calling thread puts on `stream` now may come before what torch has queued.
bool is_overtaken(void *stream);
// The calling thread has put something on `stream` past torch.
void note_put(void *stream);

} // namespace torch_queue
