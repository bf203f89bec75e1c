// What torch asks of a device: the current one, its streams and events, its memory, pinned memory.
#include "device.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>

#include <unistd.h>

#include "counters.h"
#include "events.h"
#include "generators.h"
#include "graphs.h"
#include "memory.h"
#include "streams.h"

namespace emulated_npu {
namespace {

std::atomic<int> devices = 0;
std::atomic<int> opened = -1; // the index of this process's die
std::atomic<pid_t> opener = 0;
std::atomic<size_t> bytes_of_die = 0;
std::mutex opening;
thread_local c10::DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return device_type; }
    c10::Device exchangeDevice(c10::Device device) const override {
        const c10::Device before = getDevice();
        setDevice(device);
        return before;
    }
    c10::Device getDevice() const override { return {device_type, current}; }
    void setDevice(c10::Device device) const override {
        if (device.index() >= 0)
            set_current_device(device.index());
    }
    void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
    c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(devices.load()); }

    c10::Stream getStream(c10::Device device) const override { return torch_stream(current_stream(), device); }
    c10::Stream getDefaultStream(c10::Device device) const override { return torch_stream(stream_at(0), device); }
    c10::Stream getNewStream(c10::Device device, int) const override { return torch_stream(next_stream(), device); }
    c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
    c10::Stream exchangeStream(c10::Stream stream) const override {
        return torch_stream(exchange_current_stream(stream_of(stream)), stream.device());
    }
    void *getStreamNativeHandle(const c10::Stream stream) const override {
        return reinterpret_cast<void *>(stream.id());
    }
    bool queryStream(const c10::Stream &stream) const override {
        refuse_in_capture("Stream.query");
        return stream_of(stream).done(stream_of(stream).last());
    }
    void synchronizeStream(const c10::Stream &stream) const override {
        refuse_in_capture("Stream.synchronize");
        stream_of(stream).wait();
    }
    void synchronizeDevice(const c10::DeviceIndex) const override {
        refuse_in_capture("torch.npu.synchronize");
        wait_for_all_streams();
    }
    bool isStreamCapturing(const c10::Stream &stream) const override { return stream_of(stream).recorder() != nullptr; }

    void record(void **event, const c10::Stream &stream, const c10::DeviceIndex, const c10::EventFlag) const override {
        if (*event == nullptr)
            *event = new Event;
        static_cast<Event *>(*event)->record(stream_of(stream));
    }
    void block(void *event, const c10::Stream &stream) const override {
        if (event != nullptr)
            static_cast<Event *>(event)->wait(stream_of(stream));
    }
    bool queryEvent(void *event) const override { return event == nullptr || static_cast<Event *>(event)->query(); }
    void synchronizeEvent(void *event) const override {
        if (event != nullptr)
            static_cast<Event *>(event)->synchronize();
    }
    double elapsedTime(void *from, void *to, const c10::DeviceIndex) const override {
        return static_cast<Event *>(from)->milliseconds_until(*static_cast<Event *>(to));
    }
    void destroyEvent(void *event, const c10::DeviceIndex) const noexcept override {
        delete static_cast<Event *>(event);
    }
    void recordDataPtrOnStream(const c10::DataPtr &pointer, const c10::Stream &stream) const override {
        open_current_die().record_stream(pointer.get(), stream_of(stream));
    }
};

void free_on_device(void *address) { die().free(address); }

class DeviceMemory final : public c10::DeviceAllocator {
  public:
    c10::DataPtr allocate(size_t bytes) override {
        Memory &memory = open_current_die();
        try {
            void *address = memory.allocate(bytes, current_stream());
            return {address, address, &free_on_device, {device_type, current}};
        } catch (const OutOfMemory &error) {
            TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
        }
    }
    c10::DeleterFnPtr raw_deleter() const override { return &free_on_device; }
    void copy_data(void *to, const void *from, std::size_t bytes) const override {
        copy_bytes_on_device(to, from, bytes);
    }

    bool initialized() override { return opened >= 0; }
    void emptyCache(c10::MempoolId_t) override {}
    void recordStream(const c10::DataPtr &pointer, c10::Stream stream) override {
        open_current_die().record_stream(pointer.get(), stream_of(stream));
    }
    c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
        const Usage usage = open_current_die().usage();
        c10::CachingDeviceAllocator::DeviceStats stats;
        stats.allocated_bytes[0].current = static_cast<int64_t>(usage.allocated);
        stats.allocated_bytes[0].peak = static_cast<int64_t>(usage.peak);
        stats.reserved_bytes[0].current = static_cast<int64_t>(usage.reserved);
        stats.reserved_bytes[0].peak = static_cast<int64_t>(usage.peak);
        return stats;
    }
    void resetAccumulatedStats(c10::DeviceIndex) override {}
    void resetPeakStats(c10::DeviceIndex) override { open_current_die().reset_peak(); }
    std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
        const Usage usage = open_current_die().usage();
        return {usage.total - usage.reserved, usage.total};
    }
};
DeviceMemory device_memory;

// Host memory that streams copy to and from later.
class PinnedMemory final : public c10::Allocator {
  public:
    c10::DataPtr allocate(size_t bytes) override {
        void *address = bytes == 0 ? nullptr : aligned_alloc(64, (bytes + 63) / 64 * 64);
        TORCH_CHECK(bytes == 0 || address != nullptr, "no memory for ", bytes, " pinned bytes");
        if (address != nullptr) {
            const std::lock_guard lock(mutex_);
            pinned_[static_cast<char *>(address)] = bytes;
        }
        return {address, address, &unpin, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
    void copy_data(void *to, const void *from, std::size_t bytes) const override { memcpy(to, from, bytes); }
    bool holds(const void *address) const {
        const auto *place = static_cast<const char *>(address);
        const std::lock_guard lock(mutex_);
        const auto next = pinned_.upper_bound(const_cast<char *>(place));
        return next != pinned_.begin() && place < std::prev(next)->first + std::prev(next)->second;
    }

  private:
    static void unpin(void *address);

    mutable std::mutex mutex_;
    std::map<char *, size_t> pinned_;
};
PinnedMemory &pinned_memory() {
    static auto *made = new PinnedMemory;
    return *made;
}

void PinnedMemory::unpin(void *address) {
    {
        const std::lock_guard lock(pinned_memory().mutex_);
        pinned_memory().pinned_.erase(static_cast<char *>(address));
    }
    free(address);
}

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return devices > 0; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return opened >= 0; }
    c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(devices.load()); }
    void setCurrentDevice(c10::DeviceIndex device) const override { set_current_device(device); }
    c10::DeviceIndex getCurrentDevice() const override { return current; }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
        const c10::DeviceIndex before = current;
        set_current_device(device);
        return before;
    }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }
    bool isPinnedPtr(const void *address) const override { return is_pinned(address); }
    c10::Allocator *getPinnedMemoryAllocator() const override { return &pinned_memory(); }
    c10::Device getDeviceFromPtr(void *address) const override {
        TORCH_CHECK(shadow(address) != nullptr, "not memory of the emulated NPU: ", address);
        return {device_type, static_cast<c10::DeviceIndex>(opened.load())};
    }
    const at::Generator &getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
    at::Generator getNewGenerator(c10::DeviceIndex device) const override { return new_generator(device); }
    void resizePrivateUse1Bytes(const c10::Storage &storage, size_t bytes) const override {
        resize_storage(storage, bytes);
    }
};

} // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
REGISTER_ALLOCATOR(device_type, &device_memory);

void install_device(int count, size_t memory_bytes) {
    devices = count;
    bytes_of_die = memory_bytes;
    at::RegisterPrivateUse1HooksInterface(new Hooks);
}

void set_current_device(c10::DeviceIndex device) {
    TORCH_CHECK(device >= 0 && device < devices, "there is no emulated NPU ", static_cast<int>(device), ", only ",
                devices.load());
    current = device;
}

Memory &open_current_die() {
    if (opened != current) {
        const std::lock_guard lock(opening);
        TORCH_CHECK(opened < 0 || opened == current, "a process has one die of the emulated NPU; this one has opened ",
                    opened.load(), " and cannot use ", static_cast<int>(current));
        if (opened < 0) {
            open_die(bytes_of_die);
            opener = getpid();
            opened = current;
        }
    }
    return die();
}

Usage memory_usage() { return opened < 0 ? Usage{bytes_of_die, 0, 0, 0} : open_current_die().usage(); }

bool opened_before_fork() { return opened >= 0 && opener != getpid(); }

c10::Allocator &device_allocator() { return device_memory; }
bool is_pinned(const void *address) { return pinned_memory().holds(address); }

Stream &stream_of(const c10::Stream &stream) { return stream_at(stream.id()); }
c10::Stream torch_stream(const Stream &stream, c10::Device device) {
    const c10::DeviceIndex index = device.index() < 0 ? current : device.index();
    return c10::Stream(c10::Stream::UNSAFE, {device_type, index}, stream.number());
}

void copy_bytes_on_device(void *to, const void *from, size_t bytes) {
    auto work = std::make_shared<FunctionWork>(
        "copy of bytes", [=](uint64_t) { memmove(shadow(to), shadow(from), bytes); }, 2 * bytes);
    work->touches = {to, from};
    current_stream().put(std::move(work));
}

void resize_storage(const c10::Storage &storage, size_t bytes) {
    c10::DataPtr grown = device_memory.allocate(bytes);
    if (const size_t kept = std::min(bytes, storage.nbytes()); kept > 0)
        copy_bytes_on_device(grown.get(), storage.data(), kept);
    storage.set_data_ptr_noswap(std::move(grown));
    storage.set_nbytes(bytes);
}

} // namespace emulated_npu
