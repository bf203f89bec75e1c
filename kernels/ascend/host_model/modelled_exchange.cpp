// Whole exchanges on the machine of modelled time: dispatch of all ranks from time 0, then combine from time 0.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "../kernels.h"
#include "../words.h"
#include "launches.h"
#include "machine.h"
#include "model_control.h"
#include "pages.h"
#include "time_constants.h"

namespace {

using namespace ascend_kernels;
using namespace ascend_model;

// What one rank brings, and gets.
struct RankData {
    RankData(const ExchangeLayout &layout, uint64_t tokens)
        : window(layout.total_bytes), x(tokens * layout.hidden), out(tokens * layout.hidden), ids(tokens * layout.topk),
          positions(tokens * layout.topk), counts(layout.experts / layout.ranks), totals(layout.ranks),
          matrix(uint64_t{layout.ranks} * layout.counted), weights(tokens * layout.topk),
          steps(step_bytes / sizeof(StepTimes)) {}

    Pages<uint8_t> window;
    Pages<uint16_t> x, out;
    Pages<int64_t> ids, positions, counts, totals;
    Pages<uint32_t> matrix;
    Pages<float> weights;
    Pages<StepTimes> steps;
    ExchangeSession session = {};
    Device device;
};

class Ranks {
  public:
    explicit Ranks(const ModelledExchange &exchange)
        : exchange_(exchange), layout_(*exchange.layout), windows_(layout_.ranks) {
        constexpr uint16_t one = 0x3f80;
        const uint64_t pairs = uint64_t{exchange.tokens} * layout_.topk;
        for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
            ranks_.push_back(std::make_unique<RankData>(layout_, exchange.tokens));
            RankData &data = *ranks_.back();
            exchange_initialise(&layout_, data.window.data(), 0);
            data.window.data()[layout_.state + state_timed * sizeof(uint64_t)] = static_cast<uint8_t>(exchange.timed);
            windows_.data()[rank] = data.window.data();
            std::fill_n(data.x.data(), uint64_t{exchange.tokens} * layout_.hidden, one);
            std::copy_n(exchange.ids + rank * pairs, pairs, data.ids.data());
            data.session.layout = &layout_;
            data.session.windows = windows_.data();
            data.session.timeout_ns = 1'000'000'000'000;
            data.session.rank = rank;
        }
    }

    void dispatch() {
        run(exchange_.dispatch, exchange_.sent, moe_dispatch, [this](Launch &launch, uint32_t rank) {
            RankData &data = *ranks_[rank];
            ExchangeDispatch call = {};
            call.x = data.x.data();
            call.x_stride = layout_.out_row_bytes;
            call.ids = data.ids.data();
            call.ids_bytes = sizeof(int64_t);
            call.tokens = exchange_.tokens;
            call.kind = exchange_.kind;
            call.positions = data.positions.data();
            call.counts = data.counts.data();
            call.matrix = data.matrix.data();
            call.totals = data.totals.data();
            return launch.dispatch(call);
        });
    }
    void combine() {
        run(exchange_.combine, exchange_.sent + layout_.ranks, moe_combine, [this](Launch &launch, uint32_t rank) {
            RankData &data = *ranks_[rank];
            ExchangeCombine call = {};
            call.positions = data.positions.data();
            call.weights = data.weights.data();
            call.out = data.out.data();
            call.out_stride = layout_.out_row_bytes;
            call.tokens = exchange_.tokens;
            return launch.combine(call, exchange_.kind, 0);
        });
    }
    const std::string &wrong() const { return wrong_; }

  private:
    // `prepare(launch, rank)` returns the arguments.
    template <class Arguments, class Prepare>
    void run(CoreCosts *costs, double *sent, void (*kernel)(Arguments), Prepare prepare) {
        if (!wrong_.empty())
            return;
        const uint64_t workspace_bytes = WorkspaceBytes(layout_, exchange_.cores);
        Machine machine(layout_.ranks);
        std::vector<std::unique_ptr<Launch>> launches;
        std::vector<Device *> devices;
        for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
            RankData &data = *ranks_[rank];
            launches.push_back(std::make_unique<Launch>(data.session, exchange_.cores, workspace_bytes));
            launches.back()->use_steps(data.steps.data());
            const Arguments arguments = prepare(*launches.back(), rank);
            data.device.prepare(exchange_.cores, launches.back()->memory(), [=] { kernel(arguments); });
            devices.push_back(&data.device);
        }
        machine.run(devices);
        for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
            const Verdict verdict = launches[rank]->verdict();
            if (wrong_.empty() && !devices[rank]->violation().empty())
                wrong_ = devices[rank]->violation();
            else if (wrong_.empty() && verdict.result != EXCHANGE_OK)
                wrong_ = "result " + std::to_string(verdict.result) + " on rank " + std::to_string(rank);
            std::copy(devices[rank]->costs().begin(), devices[rank]->costs().end(),
                      costs + uint64_t{rank} * exchange_.cores);
            sent[rank] = machine.sent(rank);
        }
    }

    const ModelledExchange &exchange_;
    const ExchangeLayout &layout_;
    Pages<void *> windows_;
    std::vector<std::unique_ptr<RankData>> ranks_;
    std::string wrong_;
};

} // namespace

const char *ascend_model_run_in_time(const ModelledExchange *exchange) {
    static thread_local std::string wrong;
    Ranks ranks(*exchange);
    ranks.dispatch();
    ranks.combine();
    wrong = ranks.wrong();
    return wrong.c_str();
}

uint32_t ascend_model_constant(uint32_t index, const char **texts, double *values) {
    constexpr auto number = static_cast<uint32_t>(std::size(time_constants));
    if (index < number) {
        const TimeConstantInfo &info = time_constants[index];
        texts[0] = info.name;
        texts[1] = info.unit;
        texts[2] = info.source;
        values[0] = times.*info.value;
        values[1] = info.least;
        values[2] = info.most;
    }
    return number;
}

void ascend_model_set_constant(uint32_t index, double value) { times.*time_constants[index].value = value; }
