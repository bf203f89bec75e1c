#pragma GCC visibility push(default)
#include "emulated_npu.h"
#pragma GCC visibility pop

#include <exception>
#include <memory>
#include <string>

#include "device.h"
#include "graphs.h"
#include "memory.h"
#include "streams.h"

namespace {

using namespace emulated_npu;

thread_local std::string error;

template <class Call> int guarded(Call call) {
    try {
        call();
        return 0;
    } catch (const std::exception &raised) {
        error = raised.what();
        return -1;
    }
}

Stream &stream_of(void *handle) { return stream_at(reinterpret_cast<intptr_t>(handle)); }
void *handle_of(const Stream &stream) { return reinterpret_cast<void *>(stream.number()); }

} // namespace

void *emulated_npu_shadow(const void *address) { return shadow(address); }

int emulated_npu_add_range(const void *begin, size_t bytes, void *shadow_begin) {
    return guarded([=] { add_range(begin, bytes, shadow_begin); });
}

int emulated_npu_remove_range(const void *begin) {
    return guarded([=] { remove_range(begin); });
}

void *emulated_npu_allocate(size_t bytes) {
    // It is used outside of the order of streams: what work may still use is not given out.
    static Stream &of_no_order = make_stream();
    void *address = nullptr;
    guarded([&] { address = open_current_die().allocate(bytes, of_no_order); });
    return address;
}

void emulated_npu_free(void *address) { die().free(address); }

void *emulated_npu_current_stream() { return handle_of(current_stream()); }

void *emulated_npu_new_stream() { return handle_of(make_stream()); }

void emulated_npu_drop_stream(void *stream) { give_back_stream(stream_of(stream)); }

int emulated_npu_is_capturing(void *stream) { return stream_of(stream).recorder() != nullptr; }

int emulated_npu_synchronize(void *stream) {
    return guarded([=] {
        refuse_in_capture("a wait for a stream");
        stream_of(stream).wait();
    });
}

int emulated_npu_synchronize_device() {
    return guarded([] {
        refuse_in_capture("a wait for the device");
        wait_for_all_streams();
    });
}

int emulated_npu_synchronize_for(void *stream, uint32_t milliseconds) {
    bool done = false;
    const int result = guarded([&] {
        refuse_in_capture("a wait for a stream");
        Stream &awaited = stream_of(stream);
        done = awaited.wait_for(awaited.last(), std::chrono::milliseconds(milliseconds));
    });
    return result == 0 && !done ? 1 : result;
}

uint64_t emulated_npu_put_so_far(void *stream) { return stream_of(stream).put_so_far(); }

int emulated_npu_refuse_in_capture(const char *what) {
    return guarded([=] { refuse_in_capture(what); });
}

int emulated_npu_enqueue(void *stream, const char *name, uint64_t bytes, void (*run)(void *), void (*drop)(void *),
                         void *data, const void *const *addresses, size_t address_count) {
    return guarded([=] {
        const std::shared_ptr<void> owned(data, [drop](void *dropped) {
            if (drop != nullptr)
                drop(dropped);
        });
        auto work = std::make_shared<FunctionWork>(name, [owned, run](uint64_t) { run(owned.get()); }, bytes);
        work->touches.assign(addresses, addresses + address_count);
        stream_of(stream).put(std::move(work));
    });
}

const char *emulated_npu_error() { return error.c_str(); }
