// The emulated NPU as a device of torch.
#pragma once

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>
#include <c10/core/Stream.h>

#include "memory.h"
#include "streams.h"

namespace emulated_npu {

constexpr c10::DeviceType device_type = c10::DeviceType::PrivateUse1;

// `count` devices, of which each process opens one, when it first uses it.
void install_device(int count, size_t memory_bytes);
void set_current_device(c10::DeviceIndex device);
// The die of the current device, opened if it is not yet. Raises if the process has opened another one.
Memory &open_current_die();
// Of a die that is not opened yet, that it is free: whoever asks does not use it.
Usage memory_usage();
// Whether this process was forked from the one that has opened the die, and so lacks the threads of its streams.
bool opened_before_fork();

c10::Allocator &device_allocator();
bool is_pinned(const void *address);

Stream &stream_of(const c10::Stream &stream);
c10::Stream torch_stream(const Stream &stream, c10::Device device);

// On the current stream.
void copy_bytes_on_device(void *to, const void *from, size_t bytes);
void resize_storage(const c10::Storage &storage, size_t bytes);

} // namespace emulated_npu
