/* What other stand-ins (CANN's runtime, memfabric, transfers) use of the emulated NPU. Functions that can fail return
   0, or -1 and keep the text for emulated_npu_error. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where the host reaches what lies at an address of the device; null: it is not one. */
void *emulated_npu_shadow(const void *address);
/* Addresses that others have mapped become the device's. */
int emulated_npu_add_range(const void *begin, size_t bytes, void *shadow);
int emulated_npu_remove_range(const void *begin);

/* Memory of the die, as a raw allocation; null: there is not enough. */
void *emulated_npu_allocate(size_t bytes);
void emulated_npu_free(void *address);

/* A stream by its number (`Stream.npu_stream`), which is given as a pointer; null is the default stream. */
void *emulated_npu_current_stream(void);
/* A stream of the caller's own, until it drops it. */
void *emulated_npu_new_stream(void);
void emulated_npu_drop_stream(void *stream);
int emulated_npu_is_capturing(void *stream);
int emulated_npu_synchronize(void *stream);
int emulated_npu_synchronize_device(void);
/* For so many milliseconds at most; 1: the stream has not done everything by then. */
int emulated_npu_synchronize_for(void *stream, uint32_t milliseconds);
/* How many things have been put on a stream so far, into graphs as well. */
uint64_t emulated_npu_put_so_far(void *stream);
/* -1 if a capture forbids to the calling thread what `what` names. */
int emulated_npu_refuse_in_capture(const char *what);
/* Puts a function on a stream, or into the graph that captures it. `run(data)` runs on the thread of the stream, at
   every replay again; `drop(data)`, if it is not null, once, when nothing can run it any more. `bytes`: how many it
   moves, for the counters. `addresses`: device memory that it uses. */
int emulated_npu_enqueue(void *stream, const char *name, uint64_t bytes, void (*run)(void *), void (*drop)(void *),
                         void *data, const void *const *addresses, size_t address_count);

/* What the last call of this thread that failed had to say. */
const char *emulated_npu_error(void);

#ifdef __cplusplus
}
#endif
