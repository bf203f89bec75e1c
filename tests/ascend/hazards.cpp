// Small kernels that each break one rule of the host model, by name. run_hazard returns what the model said.
#include <algorithm>
#include <cstring>
#include <string>

#include "order.h"

namespace {

using namespace ascend_kernels;
using ascend_model::Region;

constexpr uint32_t elements = 64;
constexpr uint32_t bytes = elements * sizeof(float);

alignas(64) float input[elements], workspace[elements], rows[elements], remote[elements], flags[elements],
    ends[elements];

GlobalTensor<float> global(float *address) { return Global<float>(reinterpret_cast<uint64_t>(address)); }

// What most kernels below need: two buffers, a queue, and nothing that goes wrong by itself.
struct Bench {
    TPipe pipe;
    TBuf<TPosition::VECCALC> one, other;
    TQue<TPosition::VECIN, 1> queue;
    LocalTensor<float> first, second;

    Bench() {
        pipe.InitBuffer(one, bytes);
        pipe.InitBuffer(other, bytes);
        pipe.InitBuffer(queue, 2, bytes);
        first = one.Get<float>();
        second = other.Get<float>();
    }
    void load() const { Load(first, global(input), elements); }
    void load_and_wait_for_scalar() const {
        load();
        Order<HardEvent::MTE2_S>();
    }
};

bool on_core(int64_t core) { return GetBlockIdx() == core; }

void store_and_fence(const Bench &bench, float *to) {
    bench.load();
    Order<HardEvent::MTE2_MTE3>();
    Store(global(to), bench.first, elements);
    PipeBarrier<PIPE_ALL>();
}

void look_and_move(Bench &bench) {
    Load(bench.second, global(flags), 8);
    Load(bench.first, global(rows), elements);
    Order<HardEvent::MTE2_MTE3>();
    Store(global(rows), bench.first, elements);
}

// Says on the other core that it has ended, after a store that core 0 depends on.
void store_and_end(const Bench &bench) {
    store_and_fence(bench, workspace);
    Store(global(ends), bench.first, 8);
}
void wait_for_end(const Bench &bench) {
    do {
        GetSystemCycle();
        Order<HardEvent::S_MTE2>();
        Load(bench.second, global(ends), 8);
        Order<HardEvent::MTE2_S>();
    } while (bench.second.GetValue(0) != input[0]);
}

struct Hazard {
    const char *name;
    void (*kernel)(Bench &);
};

const Hazard hazards[] = {
    {"nothing",
     [](Bench &bench) {
         store_and_fence(bench, on_core(0) ? rows : workspace);
         SyncAll<true>();
         if (on_core(0))
             Store(global(flags), bench.first, 8);
     }},
    {"unified-buffer-overfull",
     [](Bench &bench) {
         TBuf<TPosition::VECCALC> large;
         bench.pipe.InitBuffer(large, 192 * 1024);
     }},
    {"behind-the-buffer", [](Bench &bench) { bench.first.SetValue(elements, 0); }},
    {"vector-behind-the-buffer", [](Bench &bench) { Duplicate(bench.first[8], 0.0f, elements); }},
    {"copy-to-unaligned-address", [](Bench &bench) { Load(bench.first[1], global(input), 8); }},
    {"vector-at-unaligned-address", [](Bench &bench) { Duplicate(bench.first[1], 0.0f, 8); }},
    {"copy-rounded-down",
     [](Bench &bench) {
         DataCopy(bench.first, global(input), 9);
         Order<HardEvent::MTE2_S>();
         bench.first.GetValue(8);
     }},
    {"padding-read",
     [](Bench &bench) {
         Load(bench.first, global(input), 9);
         Order<HardEvent::MTE2_S>();
         bench.first.GetValue(9);
     }},
    {"unwritten-buffer-read", [](Bench &bench) { bench.first.GetValue(0); }},
    {"vector-before-load",
     [](Bench &bench) {
         bench.load();
         Muls(bench.second, bench.first, 2.0f, elements);
     }},
    {"event-of-another-pair",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_V>();
         bench.first.GetValue(0);
     }},
    {"store-before-vector",
     [](Bench &bench) {
         Duplicate(bench.first, 1.0f, elements);
         Store(global(rows), bench.first, elements);
     }},
    {"store-before-scalar",
     [](Bench &bench) {
         bench.first.SetValue(0, 1.0f);
         Store(global(rows), bench.first, 1);
     }},
    {"vector-without-barrier",
     [](Bench &bench) {
         Duplicate(bench.first, 1.0f, elements);
         Muls(bench.second, bench.first, 2.0f, elements);
     }},
    {"vector-over-a-part-of-its-operand",
     [](Bench &bench) {
         Duplicate(bench.first, 1.0f, elements);
         PipeBarrier<PIPE_V>();
         Muls(bench.first[8], bench.first, 2.0f, elements - 8);
     }},
    {"too-many-buffers",
     [](Bench &bench) {
         TBuf<TPosition::VECCALC> small;
         for (int i = 0; i < 61; ++i)
             bench.pipe.InitBuffer(small, 32);
     }},
    {"load-over-a-store",
     [](Bench &bench) {
         bench.load_and_wait_for_scalar();
         Order<HardEvent::MTE2_MTE3>();
         Store(global(rows), bench.first, elements);
         bench.load();
     }},
    {"load-over-a-scalar-read",
     [](Bench &bench) {
         bench.load_and_wait_for_scalar();
         bench.first.GetValue(0);
         bench.load();
     }},
    {"event-set-twice",
     [](Bench &) {
         SetFlag<HardEvent::MTE2_V>(0);
         SetFlag<HardEvent::MTE2_V>(0);
     }},
    {"event-never-set", [](Bench &) { WaitFlag<HardEvent::MTE2_V>(0); }},
    {"event-left-set", [](Bench &) { SetFlag<HardEvent::MTE2_V>(3); }},
    {"event-id-too-large", [](Bench &) { SetFlag<HardEvent::MTE2_V>(8); }},
    {"events-exhausted",
     [](Bench &bench) {
         for (int i = 0; i < 9; ++i)
             bench.pipe.AllocEventID<HardEvent::MTE2_V>();
     }},
    {"scalar-barrier", [](Bench &) { PipeBarrier<PIPE_S>(); }},
    {"queue-empty", [](Bench &bench) { bench.queue.DeQue<float>(); }},
    {"queue-exhausted",
     [](Bench &bench) {
         for (int i = 0; i < 3; ++i)
             bench.queue.AllocTensor<float>();
     }},
    {"queue-overfull",
     [](Bench &bench) {
         const auto one = bench.queue.AllocTensor<float>(), other = bench.queue.AllocTensor<float>();
         bench.queue.EnQue(one);
         bench.queue.EnQue(other);
     }},
    {"queue-of-a-stranger", [](Bench &bench) { bench.queue.EnQue(bench.first); }},
    {"queue-freed-before-dequeued",
     [](Bench &bench) {
         auto one = bench.queue.AllocTensor<float>();
         bench.queue.EnQue(one);
         bench.queue.FreeTensor(one);
     }},
    {"queue-not-freed", [](Bench &bench) { bench.queue.AllocTensor<float>(); }},
    {"outside-global-memory", [](Bench &bench) { Load(bench.first, global(input + 8), elements); }},
    {"input-written",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         Store(global(input), bench.first, elements);
     }},
    {"rows-read-before-flags", [](Bench &bench) { Load(bench.first, global(rows), elements); }},
    {"remote-rows-read",
     [](Bench &bench) {
         Load(bench.second, global(flags), 8);
         Load(bench.first, global(remote), elements);
     }},
    {"rows-moved-by-two-cores", look_and_move},
    {"rows-moved-after-flags",
     [](Bench &bench) {
         if (on_core(0))
             look_and_move(bench);
     }},
    {"unwritten-workspace-read", [](Bench &bench) { Load(bench.first, global(workspace), elements); }},
    {"store-not-fenced",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         if (!on_core(0))
             return;
         Store(global(workspace), bench.first, elements);
         Order<HardEvent::MTE3_MTE2>();
         Load(bench.first, global(workspace), elements);
     }},
    {"barrier-of-some-cores",
     [](Bench &) {
         if (on_core(0))
             SyncAll<true>();
     }},
    {"two-cores-write-the-same", [](Bench &bench) { store_and_fence(bench, workspace); }},
    {"two-cores-share-a-line",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         Store(global(flags + GetBlockIdx() * 8), bench.first, 8);
     }},
    {"rows-not-visible-before-flag",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         if (on_core(0)) {
             Store(global(rows), bench.first, elements);
             Store(global(flags), bench.first, 8);
         }
     }},
    {"rows-after-flag",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         if (on_core(0)) {
             Store(global(flags), bench.first, 8);
             PipeBarrier<PIPE_MTE3>();
             Store(global(rows), bench.first, elements);
         }
     }},
    {"flag-without-barrier-of-cores",
     [](Bench &bench) {
         if (on_core(0)) {
             store_and_fence(bench, rows);
             GetSystemCycle();
             return;
         }
         // Gives the other core its turn first, whichever began.
         bench.load();
         for (int i = 0; i < 4; ++i)
             GetSystemCycle();
         Order<HardEvent::MTE2_MTE3>();
         Store(global(flags), bench.first, 8);
     }},
    {"end-not-waited-for",
     [](Bench &bench) {
         if (!on_core(0)) {
             store_and_end(bench);
             return;
         }
         for (int i = 0; i < 4; ++i)
             GetSystemCycle();
         Load(bench.first, global(workspace), elements);
     }},
    {"end-waited-for",
     [](Bench &bench) {
         if (!on_core(0)) {
             store_and_end(bench);
             return;
         }
         wait_for_end(bench);
         Load(bench.first, global(workspace), elements);
     }},
    {"end-told-before-a-store-is-visible",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         if (!on_core(0))
             return;
         Store(global(workspace), bench.first, elements);
         Store(global(ends), bench.first, 8);
     }},
    {"end-told-during-a-load",
     [](Bench &bench) {
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         if (!on_core(0))
             return;
         Load(bench.second, global(input), elements);
         Store(global(ends), bench.first, 8);
     }},
    {"load-after-the-end",
     [](Bench &bench) {
         if (on_core(0))
             return;
         store_and_end(bench);
         Load(bench.second, global(input), elements);
     }},
    {"store-after-the-end",
     [](Bench &bench) {
         if (on_core(0))
             return;
         store_and_end(bench);
         Store(global(rows), bench.first, elements);
     }},
    {"scalar-store-not-written-back",
     [](Bench &) {
         if (on_core(0))
             global(workspace).SetValue(0, 1.0f);
     }},
    {"dma-past-a-dirty-line",
     [](Bench &bench) {
         if (!on_core(0))
             return;
         global(workspace).SetValue(0, 1.0f);
         Load(bench.first, global(workspace), 1);
     }},
    {"stale-scalar-load",
     [](Bench &bench) {
         if (!on_core(0))
             return;
         input[0] = 1;
         global(input).GetValue(0);
         input[0] = 2; // as a peer would
         global(input).GetValue(0);
         bench.first.SetValue(0, 0);
     }},
    {"scalar-load-after-invalidation",
     [](Bench &) {
         if (!on_core(0))
             return;
         input[0] = 1;
         global(input).GetValue(0);
         input[0] = 2;
         DataCacheCleanAndInvalid<float, CacheLine::SINGLE_CACHE_LINE, DcciDst::CACHELINE_OUT>(global(input));
         if (global(input).GetValue(0) != 2)
             ascend_model::violate("an invalidated line was not loaded again");
     }},
    {"stores-are-held-back",
     [](Bench &bench) {
         if (!on_core(0))
             return;
         rows[0] = 7;
         bench.load();
         Order<HardEvent::MTE2_MTE3>();
         Store(global(rows), bench.first, elements);
         if (rows[0] != 7)
             ascend_model::violate("a store was visible before a barrier");
         PipeBarrier<PIPE_MTE3>();
         if (rows[0] != input[0])
             ascend_model::violate("a barrier did not make a store visible");
     }},
};

Region region(const char *name, Region::Kind kind, float *begin, bool exclusive, bool is_remote = false) {
    return {name, kind, reinterpret_cast<uint64_t>(begin), bytes, 0, exclusive, false, is_remote};
}

} // namespace

extern "C" [[gnu::visibility("default")]] const char *run_hazard(const char *name) {
    static std::string said;
    for (const Hazard &hazard : hazards) {
        if (strcmp(hazard.name, name) != 0)
            continue;
        for (uint32_t i = 0; i < elements; ++i)
            input[i] = static_cast<float>(i + 1);
        std::fill_n(ends, elements, 0.0f);
        ascend_model::Device device;
        device.launch(
            2,
            {region("input", Region::input, input, false), region("workspace", Region::workspace, workspace, false),
             region("rows", Region::payload, rows, false), region("remote", Region::payload, remote, false, true),
             region("flags", Region::flags, flags, true), region("ends", Region::ends, ends, true)},
            [&hazard] {
                Bench bench;
                hazard.kernel(bench);
            });
        said = device.violation();
        return said.c_str();
    }
    return "no such hazard";
}
