// What the Python side of the emulated NPU calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "collectives.h"
#include "counters.h"
#include "device.h"
#include "events.h"
#include "faults.h"
#include "generators.h"
#include "graphs.h"
#include "memory.h"
#include "streams.h"

// As torch declares it for its own bindings, whose types these are.
PYBIND11_DECLARE_HOLDER_TYPE(T, c10::intrusive_ptr<T>, true)

namespace {

using namespace emulated_npu;

CaptureMode mode_of(const std::string &name) {
    const std::map<std::string, CaptureMode> modes = {{"global", CaptureMode::global},
                                                      {"thread_local", CaptureMode::thread_local_},
                                                      {"relaxed", CaptureMode::relaxed}};
    const auto found = modes.find(name);
    if (found == modes.end())
        throw Refused("there is no capture_error_mode " + name);
    return found->second;
}

std::map<std::string, std::pair<uint64_t, uint64_t>> counters() {
    std::map<std::string, std::pair<uint64_t, uint64_t>> all;
    for (const auto &[name, counter] : counted())
        all[name] = {counter.calls, counter.bytes};
    return all;
}

std::map<std::string, uint64_t> memory() {
    const Usage usage = memory_usage();
    return {{"total", usage.total}, {"allocated", usage.allocated}, {"peak", usage.peak}, {"reserved", usage.reserved}};
}

std::pair<uint64_t, uint64_t> default_state() {
    return {default_generator().current_seed(), default_generator().get_offset()};
}

void set_default_state(uint64_t seed, uint64_t offset) {
    at::Generator generator = default_generator();
    const std::lock_guard lock(generator.mutex());
    generator.set_current_seed(seed);
    generator.set_offset(offset);
}

double milliseconds(uintptr_t begin, uintptr_t end) {
    if (begin == 0 || end == 0)
        throw Refused("elapsed_time of an event that was never recorded");
    return reinterpret_cast<const Event *>(begin)->milliseconds_until(*reinterpret_cast<const Event *>(end));
}

void begin_capture(Graph &graph, Pool pool, const std::string &mode) {
    open_current_die();
    graph.capture_begin(current_stream(), pool, mode_of(mode));
}

} // namespace

PYBIND11_MODULE(emulated_npu_device, module) {
    module.def("install", &install_device);
    module.def("set_seed", &set_seed);
    module.def("set_flag_patience", &set_flag_patience);
    module.def("set_traceback_signal", &set_traceback_signal);
    module.def("take_failure", &take_failure);
    module.def("drain", &drain_streams);
    module.def("counters", &counters);
    module.def("memory", &memory);
    module.def("address_ranges", &address_ranges);
    module.def("opened_before_fork", &opened_before_fork);
    module.def("reset_peak", [] { open_current_die().reset_peak(); });
    module.def("milliseconds", &milliseconds);
    module.def("default_generator", &default_state);
    module.def("set_default_generator", &set_default_state);
    module.def("is_capturing", [] { return current_stream().recorder() != nullptr; });
    module.def("collectives_over", &collectives_over);
    module.def("new_pool", [] { return open_current_die().new_pool(); });

    pybind11::class_<Graph>(module, "Graph")
        .def(pybind11::init<>())
        .def("capture_begin", &begin_capture)
        .def("capture_end", &Graph::capture_end)
        .def("replay", [](Graph &graph) { graph.replay(current_stream()); })
        .def("reset", &Graph::reset)
        .def("pool", &Graph::pool)
        .def("group_begin", &Graph::group_begin)
        .def("group_end", &Graph::group_end)
        .def("update_begin", &Graph::update_begin)
        .def("update_end", &Graph::update_end);

    pybind11::class_<Flag>(module, "Flag")
        .def(pybind11::init<>())
        .def("record", [](Flag &flag, int64_t stream) { flag.record(stream_at(stream)); })
        .def("wait", [](Flag &flag, int64_t stream) { flag.wait(stream_at(stream)); })
        .def("reset", [](Flag &flag, int64_t stream) { flag.reset(stream_at(stream)); });
}
