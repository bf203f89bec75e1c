// CANN's runtime, as far as it is used here: memory, copies, streams. Every call is checked.
//
// Sources: acl/acl_rt.h of torch_npu 2.13 and 2.14 (the names of CANN 8 and 9); capture of copies from page-locked
// memory: asc-devkit, examples/01_simd_cpp_api/02_features/00_framework/04_aclgraph.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include <acl/acl.h>

namespace ascend_device {

// A call that CANN refused, in its words.
class RuntimeRefused : public std::runtime_error {
  public:
    RuntimeRefused(const char *call, aclError code)
        : std::runtime_error(std::string(call) + " returned " + std::to_string(code) + detail()), code(code) {}
    const aclError code;

  private:
    static std::string detail() {
        const char *text = aclGetRecentErrMsg();
        return text == nullptr || *text == '\0' ? "" : std::string(": ") + text;
    }
};

inline void require(aclError code, const char *call) {
    if (code != ACL_SUCCESS)
        throw RuntimeRefused(call, code);
}

// Device memory, zeroed.
class DeviceMemory {
  public:
    explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
        require(aclrtMalloc(&begin_, bytes, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
        if (const aclError code = aclrtMemset(begin_, bytes, 0, bytes); code != ACL_SUCCESS) {
            aclrtFree(begin_);
            throw RuntimeRefused("aclrtMemset", code);
        }
    }
    ~DeviceMemory() { aclrtFree(begin_); }
    DeviceMemory(const DeviceMemory &) = delete;
    DeviceMemory &operator=(const DeviceMemory &) = delete;

    uint8_t *at(size_t offset = 0) const { return static_cast<uint8_t *>(begin_) + offset; }
    uint64_t address(size_t offset = 0) const { return reinterpret_cast<uint64_t>(at(offset)); }
    size_t bytes() const { return bytes_; }

  private:
    void *begin_ = nullptr;
    size_t bytes_;
};

// Page-locked host memory: copies from and to it need no thread of the host.
class PinnedMemory {
  public:
    explicit PinnedMemory(size_t bytes) { require(aclrtMallocHost(&begin_, bytes), "aclrtMallocHost"); }
    ~PinnedMemory() { aclrtFreeHost(begin_); }
    PinnedMemory(const PinnedMemory &) = delete;
    PinnedMemory &operator=(const PinnedMemory &) = delete;

    uint8_t *at(size_t offset = 0) const { return static_cast<uint8_t *>(begin_) + offset; }

  private:
    void *begin_ = nullptr;
};

class Stream {
  public:
    Stream() { require(aclrtCreateStream(&stream_), "aclrtCreateStream"); }
    ~Stream() { aclrtDestroyStream(stream_); }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    aclrtStream get() const { return stream_; }

  private:
    aclrtStream stream_ = nullptr;
};

inline void copy_async(void *to, const void *from, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
    require(aclrtMemcpyAsync(to, bytes, from, bytes, kind, stream), "aclrtMemcpyAsync");
}

inline void synchronise(aclrtStream stream) { require(aclrtSynchronizeStream(stream), "aclrtSynchronizeStream"); }

inline bool is_captured(aclrtStream stream) {
    aclmdlRICaptureStatus status = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    aclmdlRI graph = nullptr;
    require(aclmdlRICaptureGetInfo(stream, &status, &graph), "aclmdlRICaptureGetInfo");
    return status == ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
}

inline int32_t current_device() {
    int32_t device = 0;
    require(aclrtGetDevice(&device), "aclrtGetDevice");
    return device;
}

// Vector cores that this process may have on a device: all, or what aclrtSetDeviceResLimit leaves.
inline uint32_t vector_cores(int32_t device) {
    int64_t cores = 0;
    require(aclrtGetDeviceInfo(static_cast<uint32_t>(device), ACL_DEV_ATTR_VECTOR_CORE_NUM, &cores),
            "aclrtGetDeviceInfo");
    uint32_t allowed = 0;
    require(aclrtGetDeviceResLimit(device, ACL_RT_DEV_RES_VECTOR_CORE, &allowed), "aclrtGetDeviceResLimit");
    return std::min(static_cast<uint32_t>(cores), allowed);
}

// The same of a stream, after aclrtSetStreamResLimit.
inline uint32_t vector_cores_of(aclrtStream stream) {
    uint32_t allowed = 0;
    require(aclrtGetStreamResLimit(stream, ACL_RT_DEV_RES_VECTOR_CORE, &allowed), "aclrtGetStreamResLimit");
    return allowed;
}

// While it lives, the thread may wait for a stream of its own although another stream is captured.
class BesideCaptures {
  public:
    BesideCaptures() { require(aclmdlRICaptureThreadExchangeMode(&mode_), "aclmdlRICaptureThreadExchangeMode"); }
    ~BesideCaptures() { aclmdlRICaptureThreadExchangeMode(&mode_); }
    BesideCaptures(const BesideCaptures &) = delete;
    BesideCaptures &operator=(const BesideCaptures &) = delete;

  private:
    aclmdlRICaptureMode mode_ = ACL_MODEL_RI_CAPTURE_MODE_RELAXED;
};

} // namespace ascend_device
