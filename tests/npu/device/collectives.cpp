#include "collectives.h"

#include <ATen/core/grad_mode.h>
#include <torch/version.h>

#include <functional>
#include <optional>
#include <vector>

#include "device.h"
#include "events.h"
#include "operators.h"

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 14
// What torch called them before.
#define all_gather_single _allgather_base
#define reduce_scatter_single _reduce_scatter_base
#define all_to_all_single alltoall_base
#endif

namespace emulated_npu {
namespace {

using Tensors = std::vector<at::Tensor>;
using Lists = std::vector<Tensors>;
using Started = c10::intrusive_ptr<c10d::Work>;
using Call = std::function<Started(c10d::Backend &host, Lists &tensors)>;

// A collective on its way. Whoever waits for it is a stream; the host waits for barriers only.
class OnStream final : public c10d::Work {
  public:
    OnStream(int rank, c10d::OpType type, Event end) : Work(rank, type), end_(std::move(end)) {}

    bool isCompleted() override { return end_.query(); }
    bool isSuccess() const override { return true; }
    void synchronize() override { end_.wait(current_stream()); }
    bool wait(std::chrono::milliseconds) override {
        synchronize();
        if (opType_ == c10d::OpType::BARRIER)
            end_.synchronize();
        return true;
    }

  private:
    const Event end_;
};

class Collectives final : public c10d::Backend {
  public:
    // Collectives of a group run in the order of their launches, replayed ones among others: HCCL is taken to see to
    // that, as NCCL does, for SGLang's pipelines need it.
    explicit Collectives(c10::intrusive_ptr<c10d::Backend> host)
        : Backend(host->getRank(), host->getSize()), host_(std::move(host)), stream_(next_stream()) {
        stream_.stay_in_replays();
    }

    const std::string getBackendName() const override { return "hccl"; }

    // As HCCL's: calls between the two begin together, in whatever order their peers make theirs.
    bool supportsCoalescing() const override { return true; }
    void startCoalescing() override { batch_.emplace(); }
    Started endCoalescing() override {
        const Batch batch = std::move(batch_.value());
        batch_.reset();
        return start(c10d::OpType::COALESCED, batch);
    }

    Started broadcast(Tensors &tensors, const c10d::BroadcastOptions &options) override {
        return put(c10d::OpType::BROADCAST, {tensors},
                   [options](c10d::Backend &host, Lists &given) { return host.broadcast(given[0], options); });
    }
    Started allreduce(Tensors &tensors, const c10d::AllreduceOptions &options) override {
        return put(c10d::OpType::ALLREDUCE, {tensors},
                   [options](c10d::Backend &host, Lists &given) { return host.allreduce(given[0], options); });
    }
    Started reduce(Tensors &tensors, const c10d::ReduceOptions &options) override {
        return put(c10d::OpType::REDUCE, {tensors},
                   [options](c10d::Backend &host, Lists &given) { return host.reduce(given[0], options); });
    }
    Started allgather(Lists &outputs, Tensors &inputs, const c10d::AllgatherOptions &options) override {
        return put(c10d::OpType::ALLGATHER, {inputs, outputs.at(0)}, [options](c10d::Backend &host, Lists &given) {
            Lists all{given[1]};
            return host.allgather(all, given[0], options);
        });
    }
    Started all_gather_single(at::Tensor &output, at::Tensor &input, const c10d::AllgatherOptions &options) override {
        return put(c10d::OpType::_ALLGATHER_BASE, {{output, input}}, [options](c10d::Backend &host, Lists &given) {
            return host.all_gather_single(given[0][0], given[0][1], options);
        });
    }
    Started gather(Lists &outputs, Tensors &inputs, const c10d::GatherOptions &options) override {
        return put(c10d::OpType::GATHER, with(inputs, outputs), [options](c10d::Backend &host, Lists &given) {
            Lists all(given.begin() + 1, given.end());
            return host.gather(all, given[0], options);
        });
    }
    Started scatter(Tensors &outputs, Lists &inputs, const c10d::ScatterOptions &options) override {
        return put(c10d::OpType::SCATTER, with(outputs, inputs), [options](c10d::Backend &host, Lists &given) {
            Lists all(given.begin() + 1, given.end());
            return host.scatter(given[0], all, options);
        });
    }
    Started reduce_scatter(Tensors &outputs, Lists &inputs, const c10d::ReduceScatterOptions &options) override {
        return put(c10d::OpType::REDUCE_SCATTER, with(outputs, inputs), [options](c10d::Backend &host, Lists &given) {
            Lists all(given.begin() + 1, given.end());
            return host.reduce_scatter(given[0], all, options);
        });
    }
    Started reduce_scatter_single(at::Tensor &output, at::Tensor &input,
                                  const c10d::ReduceScatterOptions &options) override {
        return put(c10d::OpType::_REDUCE_SCATTER_BASE, {{output, input}}, [options](c10d::Backend &host, Lists &given) {
            return host.reduce_scatter_single(given[0][0], given[0][1], options);
        });
    }
    Started all_to_all_single(at::Tensor &output, at::Tensor &input, std::vector<int64_t> &output_sizes,
                              std::vector<int64_t> &input_sizes, const c10d::AllToAllOptions &options) override {
        return put(c10d::OpType::ALLTOALL_BASE, {{output, input}},
                   [options, output_sizes, input_sizes](c10d::Backend &host, Lists &given) {
                       std::vector<int64_t> out = output_sizes, in = input_sizes;
                       return host.all_to_all_single(given[0][0], given[0][1], out, in, options);
                   });
    }
    Started alltoall(Tensors &outputs, Tensors &inputs, const c10d::AllToAllOptions &options) override {
        return put(c10d::OpType::ALLTOALL, {outputs, inputs},
                   [options](c10d::Backend &host, Lists &given) { return host.alltoall(given[0], given[1], options); });
    }
    Started send(Tensors &tensors, int to, int tag) override {
        return put(c10d::OpType::SEND, {tensors},
                   [to, tag](c10d::Backend &host, Lists &given) { return host.send(given[0], to, tag); });
    }
    Started recv(Tensors &tensors, int from, int tag) override {
        return put(c10d::OpType::RECV, {tensors},
                   [from, tag](c10d::Backend &host, Lists &given) { return host.recv(given[0], from, tag); });
    }
    Started barrier(const c10d::BarrierOptions &options) override {
        c10d::BarrierOptions of_host;
        of_host.timeout = options.timeout;
        return put(c10d::OpType::BARRIER, {},
                   [of_host](c10d::Backend &host, Lists &) { return host.barrier(of_host); });
    }

  private:
    static Lists with(const Tensors &own, const Lists &all) {
        Lists lists{own};
        lists.insert(lists.end(), all.begin(), all.end());
        return lists;
    }

    struct Part {
        std::vector<std::vector<Placed>> placed;
        Call call;
        Started start(c10d::Backend &host) const {
            Lists on_host;
            for (const std::vector<Placed> &tensors : placed) {
                on_host.emplace_back();
                for (const Placed &tensor : tensors)
                    on_host.back().push_back(tensor.on_host());
            }
            return call(host, on_host);
        }
    };
    struct Batch {
        std::vector<Part> parts;
        std::vector<const void *> touches;
        uint64_t bytes = 0;
    };

    Started put(c10d::OpType type, const Lists &lists, Call call) {
        Batch alone;
        Batch &batch = batch_ ? *batch_ : alone;
        Part &part = batch.parts.emplace_back(Part{{}, std::move(call)});
        for (const Tensors &tensors : lists) {
            part.placed.emplace_back();
            for (const at::Tensor &tensor : tensors) {
                TORCH_CHECK(on_emulated_npu(tensor), "hccl has no collective for a tensor of ", tensor.device());
                part.placed.back().emplace_back(tensor);
                batch.bytes += tensor.nbytes();
                if (const void *address = part.placed.back().back().address())
                    batch.touches.push_back(address);
            }
        }
        return batch_ ? Started() : start(type, alone);
    }

    // As HCCL: the collectives begin where the current stream is now, and run on the group's.
    Started start(c10d::OpType type, const Batch &batch) {
        auto work = std::make_shared<FunctionWork>(
            "hccl " + c10d::opTypeToString(type),
            [host = host_, parts = batch.parts](uint64_t) {
                const at::NoGradGuard no_gradients;
                std::vector<Started> started;
                for (const Part &part : parts)
                    started.push_back(part.start(*host));
                for (const Started &one : started)
                    one->wait();
            },
            batch.bytes);
        work->touches = batch.touches;
        Event begin, end;
        begin.record(current_stream());
        begin.wait(stream_);
        stream_.put(std::move(work));
        for (const void *address : batch.touches)
            open_current_die().record_stream(address, stream_);
        end.record(stream_);
        return c10::make_intrusive<OnStream>(rank_, type, std::move(end));
    }

    const c10::intrusive_ptr<c10d::Backend> host_;
    Stream &stream_;
    std::optional<Batch> batch_;
};

} // namespace

c10::intrusive_ptr<c10d::Backend> collectives_over(c10::intrusive_ptr<c10d::Backend> host) {
    return c10::make_intrusive<Collectives>(std::move(host));
}

} // namespace emulated_npu
