// What the library for Ascend devices has beside exchange.h. No NPU has run it.
//
// Windows, tables and tensors lie in device memory: no address in ExchangeSession::windows, ExchangeDispatch or
// ExchangeCombine is read or written by the host. Sessions, calls, blocks and results of exchange.h lie in host memory.
// A dispatch or combine on a stream that is being captured is only put on it, and so is one of a deferred session; its
// verdict is looked at by exchange_device_check. Every other call waits for its verdict, as exchange.h says.
#ifndef ASCEND_MOE_EXCHANGE_DEVICE_H
#define ASCEND_MOE_EXCHANGE_DEVICE_H

#include "exchange.h"

#define EXCHANGE_DEVICE_ABI_VERSION 5u

// The cause of an EXCHANGE_PEER_FAILED of this rank: CANN refused a call, and its words are in session.refusal.
#define EXCHANGE_CAUSE_RUNTIME 255u

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define EXCHANGE_DEVICE_ARGUMENT_WORDS 48

// A kernel with its arguments, which travel with it: it may be copied, launched and captured any number of times.
typedef struct ExchangeLaunch {
    uint32_t kernel; // of the library
    uint32_t cores;
    uint64_t arguments[EXCHANGE_DEVICE_ARGUMENT_WORDS];
} ExchangeLaunch;

uint32_t exchange_device_abi_version(void);

// Everything that launches of `session` need, on the device that the calling thread uses: table of windows, workspace.
// `cores`: vector cores to run on, 0 for all. Not while a stream is captured. Returns EXCHANGE_OK, or
// EXCHANGE_PEER_FAILED with the fault in `session`.
int exchange_device_open(ExchangeSession *session, uint32_t cores);

// Ends the watch over peers and gives the memory back; graphs that hold launches of the session must be gone.
void exchange_device_close(ExchangeSession *session);

// The stream (aclrtStream) on which calls of `session` are launched from now on. `deferred` 1: dispatches and combines
// return once they have been put on it, with slot 0, epoch 0 and total 0; only with one slot.
void exchange_device_use_stream(ExchangeSession *session, void *stream, uint32_t deferred);

// Readies a call that nobody will wait for, and puts a ready one on a stream, as one task. `most_rows`: a dispatch that
// brings more to any rank is refused as if windows had no more rows; 0 for all that they have. exchange_device_launch
// neither waits nor allocates, and reads nothing of the session or of the call; it may run on another thread, in the
// order of the stream. Returns 0, or what CANN returned.
int exchange_device_ready_dispatch(ExchangeSession *session, const ExchangeDispatch *call, uint64_t most_rows,
                                   ExchangeLaunch *launch);
int exchange_device_ready_combine(ExchangeSession *session, const ExchangeCombine *call, ExchangeLaunch *launch);
int exchange_device_launch(const ExchangeLaunch *launch, void *stream);

// 1 while a graph captures what is put on `stream`, 0 otherwise.
int exchange_device_capturing(void *stream);

// Waits for everything that was put on the stream of `session`, replays of captured launches included. EXCHANGE_OK, or
// the first fault that a launch found since the last check, or what another rank has told since, in `session` as a call
// would leave it.
int exchange_device_check(ExchangeSession *session);

// How many fetches may be on their way at once, each to a place of its own.
#define EXCHANGE_DEVICE_FETCHES 8u

// The same without a wait, but once a second for the clock of the device where steps are traced, in two parts.
// exchange_device_fetch puts a copy of what launches before it have found on `stream`, to `place`; it may run on
// another thread, and returns 0 or what CANN returned. Once the host knows that the copy has been made,
// exchange_device_fetched returns for that place what exchange_device_check returns, again and again until
// exchange_device_forget, which takes effect in the order of the stream of `session`.
int exchange_device_fetch(ExchangeSession *session, void *stream, uint32_t place);
int exchange_device_fetched(ExchangeSession *session, uint32_t place);
void exchange_device_forget(ExchangeSession *session);

// Has the steps of what is launched from now on written into `trace`, replays of launches captured before included, as
// it is checked or fetched; null: no more. Waits for everything on the device, and writes what it has left first. Not
// while a stream is captured. Returns as exchange_device_open.
int exchange_device_trace(ExchangeSession *session, ExchangeTrace *trace);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
