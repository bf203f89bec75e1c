// CANN's runtime over the emulated NPU, as far as the library for Ascend devices calls it, for tests only. It is
// compiled against the real declarations of acl/acl_rt.h, and is strict where they leave no doubt: a copy in stream
// order is from or to page-locked memory, nothing waits or allocates while a stream is captured, and memory of the
// device has its addresses, which the host cannot use.
#include "torch_queue.h"

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include <acl/acl.h>

#include "calls.h"
#include "emulated_npu.h"
#include "runtime_stand_in.h"

namespace {

using cann_calls::put;
using cann_calls::refuse;

thread_local std::string refusal;

aclError refuse_as_device(aclError code) {
    refusal = emulated_npu_error();
    return code;
}

// A thread works on one device; what another one has made there is not for it.
std::atomic<int32_t> device_of_process = -1;

bool on_another_device() {
    int32_t device = 0;
    aclrtGetDevice(&device);
    return device_of_process >= 0 && device != device_of_process;
}
aclError refuse_thread(const char *call) {
    return refuse(ACL_ERROR_RT_STREAM_CONTEXT, std::string(call) + " by a thread whose device is another one");
}

// Page-locked memory. Copies that are still to come keep it, so that one that comes too late is found.
struct PageLocked {
    explicit PageLocked(size_t size) : bytes(size), begin(new char[size]) {}
    const size_t bytes;
    const std::unique_ptr<char[]> begin;
    std::atomic<bool> given_back = false;
};

std::mutex page_locked_mutex;
std::map<const char *, std::shared_ptr<PageLocked>> &page_locked() {
    static auto *all = new std::map<const char *, std::shared_ptr<PageLocked>>;
    return *all;
}

// What the bytes lie in; null if they are not page-locked.
std::shared_ptr<PageLocked> page_locked_at(const void *begin, size_t bytes) {
    const auto *place = static_cast<const char *>(begin);
    const std::lock_guard lock(page_locked_mutex);
    const auto next = page_locked().upper_bound(place);
    if (next == page_locked().begin())
        return nullptr;
    const auto &[first, memory] = *std::prev(next);
    return place + bytes <= first + memory->bytes ? memory : nullptr;
}

// One call on a stream.
struct Task {
    std::function<void()> run;
};

// Both ends of a copy as the host reaches them, and which one is page-locked.
struct Ends {
    char *to;
    const char *from;
    std::shared_ptr<PageLocked> host;
    std::string fault;
};

Ends ends_of(void *to, const void *from, size_t count, aclrtMemcpyKind kind) {
    Ends ends = {static_cast<char *>(to), static_cast<const char *>(from), nullptr, ""};
    const bool device_to = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
    const bool device_from = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
    if (device_to)
        ends.to = static_cast<char *>(emulated_npu_shadow(to));
    if (device_from)
        ends.from = static_cast<const char *>(emulated_npu_shadow(from));
    if (ends.to == nullptr || ends.from == nullptr)
        ends.fault = std::string("a copy ") + (ends.to == nullptr ? "to" : "from") + " what is no memory of the device";
    else if ((!device_to && emulated_npu_shadow(to) != nullptr) ||
             (!device_from && emulated_npu_shadow(from) != nullptr))
        ends.fault = "a copy says that memory of the device is that of the host";
    else if (!device_to || !device_from)
        ends.host = page_locked_at(device_to ? from : to, count);
    return ends;
}

const char *name_of(aclrtMemcpyKind kind) {
    switch (kind) {
    case ACL_MEMCPY_HOST_TO_DEVICE:
        return "copy from the host";
    case ACL_MEMCPY_DEVICE_TO_HOST:
        return "copy to the host";
    default:
        return "copy on the device";
    }
}

} // namespace

aclError cann_calls::refuse(aclError code, const std::string &text) {
    refusal = "emulated NPU: " + text;
    return code;
}

aclError cann_calls::put(aclrtStream stream, const char *name, uint64_t bytes, std::function<void()> run,
                         const std::vector<const void *> &addresses) {
    if (on_another_device())
        return refuse_thread(name);
    if (torch_queue::is_overtaken(stream))
        return refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, std::string(name) + " is put on stream " +
                                                            std::to_string(reinterpret_cast<intptr_t>(stream)) +
                                                            " before what torch has queued for it");
    auto task = std::make_unique<Task>(Task{std::move(run)});
    const int result = emulated_npu_enqueue(
        stream, name, bytes, [](void *data) { static_cast<Task *>(data)->run(); },
        [](void *data) { delete static_cast<Task *>(data); }, task.get(), addresses.data(), addresses.size());
    // The stream has it, also if it was refused.
    task.release();
    torch_queue::note_put(stream);
    return result == 0 ? ACL_SUCCESS : refuse_as_device(ACL_ERROR_INTERNAL_ERROR);
}

void cann_stand_in::enqueue(void *stream, const char *call, std::function<void()> work) {
    if (put(stream, call, 0, std::move(work)) != ACL_SUCCESS)
        throw std::runtime_error(refusal);
}

uint64_t cann_stand_in::on_host(uint64_t address) {
    void *place = emulated_npu_shadow(reinterpret_cast<const void *>(address));
    if (place == nullptr)
        throw std::runtime_error("a kernel was given what is no memory of the device");
    return reinterpret_cast<uint64_t>(place);
}

const char *aclGetRecentErrMsg() { return refusal.c_str(); }

aclError aclrtMalloc(void **memory, size_t bytes, aclrtMemMallocPolicy) {
    if (emulated_npu_refuse_in_capture("aclrtMalloc") != 0)
        return refuse_as_device(ACL_ERROR_RT_STREAM_CAPTURED);
    int32_t device = 0;
    aclrtGetDevice(&device);
    device_of_process = device;
    *memory = emulated_npu_allocate(bytes);
    return *memory != nullptr ? ACL_SUCCESS : refuse_as_device(ACL_ERROR_RT_MEMORY_ALLOCATION);
}
aclError aclrtFree(void *memory) {
    if (on_another_device())
        return refuse_thread("aclrtFree");
    emulated_npu_free(memory);
    return ACL_SUCCESS;
}
aclError aclrtMallocHost(void **memory, size_t bytes) {
    if (emulated_npu_refuse_in_capture("aclrtMallocHost") != 0)
        return refuse_as_device(ACL_ERROR_RT_STREAM_CAPTURED);
    auto made = std::make_shared<PageLocked>(bytes);
    *memory = made->begin.get();
    const std::lock_guard lock(page_locked_mutex);
    page_locked()[made->begin.get()] = std::move(made);
    return ACL_SUCCESS;
}
aclError aclrtFreeHost(void *memory) {
    const std::lock_guard lock(page_locked_mutex);
    const auto found = page_locked().find(static_cast<const char *>(memory));
    if (found == page_locked().end())
        return refuse(ACL_ERROR_RT_PARAM_INVALID, "aclrtFreeHost of what is not page-locked");
    found->second->given_back = true;
    page_locked().erase(found);
    return ACL_SUCCESS;
}

aclError aclrtMemset(void *memory, size_t most, int32_t value, size_t count) {
    if (emulated_npu_refuse_in_capture("aclrtMemset") != 0)
        return refuse_as_device(ACL_ERROR_RT_STREAM_CAPTURED);
    void *place = emulated_npu_shadow(memory);
    if (place == nullptr || count > most)
        return refuse(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemset of what is no memory of the device");
    memset(place, value, count);
    return ACL_SUCCESS;
}
aclError aclrtMemcpy(void *to, size_t most, const void *from, size_t count, aclrtMemcpyKind kind) {
    if (emulated_npu_refuse_in_capture("aclrtMemcpy") != 0)
        return refuse_as_device(ACL_ERROR_RT_STREAM_CAPTURED);
    const Ends ends = ends_of(to, from, count, kind);
    if (count > most || !ends.fault.empty())
        return refuse(ACL_ERROR_RT_PARAM_INVALID, ends.fault);
    memcpy(ends.to, ends.from, count);
    return ACL_SUCCESS;
}
aclError aclrtMemcpyAsync(void *to, size_t most, const void *from, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
    const Ends ends = ends_of(to, from, count, kind);
    if (count > most || !ends.fault.empty())
        return refuse(ACL_ERROR_RT_PARAM_INVALID, ends.fault);
    if (kind != ACL_MEMCPY_DEVICE_TO_DEVICE && ends.host == nullptr)
        return refuse(ACL_ERROR_RT_PARAM_INVALID, "a copy in stream order with memory that is not page-locked");
    const auto copy = [ends, count] {
        if (ends.host != nullptr && ends.host->given_back)
            throw std::runtime_error("its page-locked memory was given back before");
        memcpy(ends.to, ends.from, count);
    };
    if (kind == ACL_MEMCPY_HOST_TO_DEVICE)
        return put(stream, name_of(kind), 2 * count, copy, {to});
    return kind == ACL_MEMCPY_DEVICE_TO_HOST ? put(stream, name_of(kind), 2 * count, copy, {from})
                                             : put(stream, name_of(kind), 2 * count, copy, {to, from});
}

aclError aclrtCreateStream(aclrtStream *stream) {
    if (emulated_npu_refuse_in_capture("aclrtCreateStream") != 0)
        return refuse_as_device(ACL_ERROR_RT_STREAM_CAPTURED);
    *stream = emulated_npu_new_stream();
    return ACL_SUCCESS;
}
aclError aclrtDestroyStream(aclrtStream stream) {
    emulated_npu_drop_stream(stream);
    return ACL_SUCCESS;
}
aclError aclrtSynchronizeStream(aclrtStream stream) {
    if (on_another_device())
        return refuse_thread("aclrtSynchronizeStream");
    return emulated_npu_synchronize(stream) == 0 ? ACL_SUCCESS : refuse_as_device(ACL_ERROR_RT_AICORE_EXCEPTION);
}
aclError aclrtSynchronizeDevice() {
    if (on_another_device())
        return refuse_thread("aclrtSynchronizeDevice");
    return emulated_npu_synchronize_device() == 0 ? ACL_SUCCESS : refuse_as_device(ACL_ERROR_RT_AICORE_EXCEPTION);
}
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t milliseconds) {
    if (milliseconds < 0)
        return aclrtSynchronizeStream(stream);
    switch (emulated_npu_synchronize_for(stream, static_cast<uint32_t>(milliseconds))) {
    case 0:
        return ACL_SUCCESS;
    case 1:
        return refuse(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "the stream has not done everything");
    default:
        return refuse_as_device(ACL_ERROR_RT_AICORE_EXCEPTION);
    }
}

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus *status, aclmdlRI *graph) {
    *graph = nullptr;
    *status =
        emulated_npu_is_capturing(stream) != 0 ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    return ACL_SUCCESS;
}
