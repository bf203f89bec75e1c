// A stand-in for the part of CANN's runtime that the device library uses, on the CPU, for tests only. It is compiled
// against the real declarations of acl/acl_rt.h. Streams run what was put on them in order, each on a thread of its
// own; a stream that is captured runs nothing, and calls that wait or allocate are refused meanwhile, as in the
// strictest capture mode. It knows nothing of an NPU.
#include "runtime_stand_in.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

// Tests call them too.
#pragma GCC visibility push(default)
#include <acl/acl.h>
#pragma GCC visibility pop

namespace {

using Work = std::function<void()>;

class InOrder {
  public:
    InOrder() : thread_([this] { run(); }) {}
    ~InOrder() {
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void put(Work work) {
        {
            const std::lock_guard lock(mutex_);
            if (captured != nullptr)
                captured->push_back(std::move(work));
            else
                waiting_.push_back(std::move(work));
        }
        changed_.notify_all();
    }
    bool wait(int32_t milliseconds) {
        std::unique_lock lock(mutex_);
        const auto idle = [this] { return waiting_.empty() && !running_; };
        if (milliseconds < 0) {
            changed_.wait(lock, idle);
            return true;
        }
        return changed_.wait_for(lock, std::chrono::milliseconds(milliseconds), idle);
    }

    std::vector<Work> *captured = nullptr;

  private:
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
            if (waiting_.empty())
                return;
            const Work work = std::move(waiting_.front());
            waiting_.pop_front();
            running_ = true;
            lock.unlock();
            work();
            lock.lock();
            running_ = false;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Work> waiting_;
    bool running_ = false;
    bool ending_ = false;
    std::thread thread_;
};

std::mutex mutex;
std::string calls;
std::map<std::string, int> refusals;
std::map<void *, size_t> allocations;
uint32_t cores = 1;
uint32_t cores_of_streams = 0; // 0: all
uint32_t captures = 0;
std::set<InOrder *> streams;
thread_local aclmdlRICaptureMode mode_of_thread = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

// Notes a call. Returns what it has to return at once, ACL_SUCCESS to go on.
aclError begin(const char *name, bool allowed_in_capture = true) {
    const std::lock_guard lock(mutex);
    calls += std::string(name) + "\n";
    if (const auto found = refusals.find(name); found != refusals.end()) {
        const int code = found->second;
        refusals.erase(found);
        return code;
    }
    const bool restricted = captures > 0 && mode_of_thread != ACL_MODEL_RI_CAPTURE_MODE_RELAXED;
    return restricted && !allowed_in_capture ? ACL_ERROR_RT_STREAM_CAPTURED : ACL_SUCCESS;
}

InOrder &in_order(aclrtStream stream) {
    static InOrder of_context; // the stream without a name
    return stream == nullptr ? of_context : *static_cast<InOrder *>(stream);
}

aclError allocate(const char *name, void **begin_of, size_t bytes) {
    if (const aclError code = begin(name, false); code != ACL_SUCCESS)
        return code;
    *begin_of = aligned_alloc(512, (bytes + 511) / 512 * 512);
    memset(*begin_of, 0xa5, bytes);
    const std::lock_guard lock(mutex);
    allocations[*begin_of] = bytes;
    return ACL_SUCCESS;
}

aclError give_back(const char *name, void *memory) {
    if (const aclError code = begin(name, false); code != ACL_SUCCESS)
        return code;
    const std::lock_guard lock(mutex);
    if (allocations.erase(memory) == 0)
        return ACL_ERROR_INVALID_PARAM;
    free(memory);
    return ACL_SUCCESS;
}

} // namespace

void cann_stand_in::enqueue(void *stream, const char *call, Work work) {
    begin(call);
    in_order(stream).put(std::move(work));
}

uint32_t cann_stand_in::cores_of(void *) { return cores_of_streams != 0 ? cores_of_streams : cores; }

uint64_t cann_stand_in::on_host(uint64_t address) { return address; }

const char *cann_stand_in_calls() {
    static std::string looked_at;
    const std::lock_guard lock(mutex);
    looked_at = std::move(calls);
    calls.clear();
    return looked_at.c_str();
}
void cann_stand_in_refuse(const char *name, int code) {
    const std::lock_guard lock(mutex);
    refusals[name] = code;
}
void cann_stand_in_use_cores(uint32_t count) { cores = count; }
void cann_stand_in_limit_streams(uint32_t count) { cores_of_streams = count; }
uint64_t cann_stand_in_allocated() {
    const std::lock_guard lock(mutex);
    uint64_t bytes = 0;
    for (const auto &[memory, size] : allocations)
        bytes += size;
    return bytes;
}

const char *aclGetRecentErrMsg() { return "said the stand-in"; }

aclError aclrtMalloc(void **memory, size_t bytes, aclrtMemMallocPolicy) {
    return allocate("aclrtMalloc", memory, bytes);
}
aclError aclrtFree(void *memory) { return give_back("aclrtFree", memory); }
aclError aclrtMallocHost(void **memory, size_t bytes) { return allocate("aclrtMallocHost", memory, bytes); }
aclError aclrtFreeHost(void *memory) { return give_back("aclrtFreeHost", memory); }

aclError aclrtMemset(void *memory, size_t, int32_t value, size_t count) {
    if (const aclError code = begin("aclrtMemset", false); code != ACL_SUCCESS)
        return code;
    memset(memory, value, count);
    return ACL_SUCCESS;
}
aclError aclrtMemcpy(void *to, size_t most, const void *from, size_t count, aclrtMemcpyKind) {
    if (const aclError code = begin("aclrtMemcpy", false); code != ACL_SUCCESS)
        return code;
    if (count > most)
        return ACL_ERROR_INVALID_PARAM;
    memcpy(to, from, count);
    return ACL_SUCCESS;
}
aclError aclrtMemcpyAsync(void *to, size_t most, const void *from, size_t count, aclrtMemcpyKind, aclrtStream stream) {
    if (const aclError code = begin("aclrtMemcpyAsync"); code != ACL_SUCCESS)
        return code;
    if (count > most)
        return ACL_ERROR_INVALID_PARAM;
    in_order(stream).put([=] { memcpy(to, from, count); });
    return ACL_SUCCESS;
}

aclError aclrtCreateStream(aclrtStream *stream) {
    if (const aclError code = begin("aclrtCreateStream", false); code != ACL_SUCCESS)
        return code;
    auto *made = new InOrder;
    *stream = made;
    const std::lock_guard lock(mutex);
    streams.insert(made);
    return ACL_SUCCESS;
}
aclError aclrtDestroyStream(aclrtStream stream) {
    if (const aclError code = begin("aclrtDestroyStream", false); code != ACL_SUCCESS)
        return code;
    {
        const std::lock_guard lock(mutex);
        streams.erase(static_cast<InOrder *>(stream));
    }
    delete static_cast<InOrder *>(stream);
    return ACL_SUCCESS;
}
aclError aclrtSynchronizeStream(aclrtStream stream) { return aclrtSynchronizeStreamWithTimeout(stream, -1); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t milliseconds) {
    if (const aclError code = begin("aclrtSynchronizeStream", false); code != ACL_SUCCESS)
        return code;
    if (in_order(stream).captured != nullptr)
        return ACL_ERROR_RT_STREAM_CAPTURED;
    return in_order(stream).wait(milliseconds) ? ACL_SUCCESS : ACL_ERROR_RT_STREAM_SYNC_TIMEOUT;
}

aclError aclrtSynchronizeDevice() {
    if (const aclError code = begin("aclrtSynchronizeDevice", false); code != ACL_SUCCESS)
        return code;
    std::set<InOrder *> all;
    {
        const std::lock_guard lock(mutex);
        all = streams;
    }
    in_order(nullptr).wait(-1);
    for (InOrder *stream : all)
        stream->wait(-1);
    return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t *device) {
    *device = 0;
    return begin("aclrtGetDevice");
}
aclError aclrtSetDevice(int32_t) { return begin("aclrtSetDevice"); }
aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr, int64_t *value) {
    *value = cores;
    return begin("aclrtGetDeviceInfo");
}

aclError aclrtGetDeviceResLimit(int32_t, aclrtDevResLimitType, uint32_t *value) {
    *value = cores;
    return begin("aclrtGetDeviceResLimit");
}
aclError aclrtGetStreamResLimit(aclrtStream stream, aclrtDevResLimitType, uint32_t *value) {
    *value = cann_stand_in::cores_of(stream);
    return begin("aclrtGetStreamResLimit");
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode *mode) {
    std::swap(*mode, mode_of_thread);
    return ACL_SUCCESS;
}
aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus *status, aclmdlRI *graph) {
    *graph = in_order(stream).captured;
    *status = *graph == nullptr ? ACL_MODEL_RI_CAPTURE_STATUS_NONE : ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
    return begin("aclmdlRICaptureGetInfo");
}
aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode) {
    const std::lock_guard lock(mutex);
    ++captures;
    in_order(stream).captured = new std::vector<Work>;
    return ACL_SUCCESS;
}
aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI *graph) {
    const std::lock_guard lock(mutex);
    --captures;
    *graph = in_order(stream).captured;
    in_order(stream).captured = nullptr;
    return ACL_SUCCESS;
}
aclError aclmdlRIExecuteAsync(aclmdlRI graph, aclrtStream stream) {
    for (const Work &work : *static_cast<std::vector<Work> *>(graph))
        in_order(stream).put(work);
    return ACL_SUCCESS;
}
aclError aclmdlRIDestroy(aclmdlRI graph) {
    delete static_cast<std::vector<Work> *>(graph);
    return ACL_SUCCESS;
}
