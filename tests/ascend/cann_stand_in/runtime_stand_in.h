// What tests ask of the stand-in for CANN's runtime beside the functions of acl/acl_rt.h.
#pragma once

#include <cstdint>
#include <functional>

namespace cann_stand_in {

// Puts work on a stream, as a launch does; what a graph captures runs at its replays.
void enqueue(void *stream, const char *call, std::function<void()> work);

// Vector cores that a stream may have.
uint32_t cores_of(void *stream);

// Where the host reaches what lies at an address of the device. Raises std::runtime_error if it is not one.
uint64_t on_host(uint64_t address);

} // namespace cann_stand_in

extern "C" {
#pragma GCC visibility push(default)

// The names of the calls since the last look, one a line.
const char *cann_stand_in_calls();

// The next call of `name` returns `code`.
void cann_stand_in_refuse(const char *name, int code);

// Vector cores of the device.
void cann_stand_in_use_cores(uint32_t cores);

// Of them, what streams may have from now on; 0: all.
void cann_stand_in_limit_streams(uint32_t cores);

// Bytes of device and page-locked memory that are allocated.
uint64_t cann_stand_in_allocated();

// The first rule of the host model that a kernel broke, or an empty text.
const char *cann_stand_in_violation();

#pragma GCC visibility pop
}
