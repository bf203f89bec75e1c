#include "graphs.h"

#include <algorithm>
#include <mutex>

namespace emulated_npu {
namespace {

struct Capture {
    const Recorder *recorder = nullptr;
    CaptureMode mode = CaptureMode::global;
    std::thread::id thread;
};
std::mutex capture_mutex;
Capture capture;

bool forbids(const Capture &running) {
    if (running.recorder == nullptr || running.mode == CaptureMode::relaxed)
        return false;
    return running.mode == CaptureMode::global || running.thread == std::this_thread::get_id();
}

// What the calling thread updates.
struct Update {
    std::vector<std::shared_ptr<Work>> works;
    size_t next = 0;
};
thread_local std::optional<Update> update;

} // namespace

class Graph::Kept {
  public:
    explicit Kept(Pool pool) : pool_(pool) { die().keep(pool_); }
    ~Kept() { die().release(pool_); }
    Kept(const Kept &) = delete;
    Kept &operator=(const Kept &) = delete;

  private:
    const Pool pool_;
};

void Graph::capture_begin(Stream &stream, Pool pool, CaptureMode mode) {
    if (ended_)
        throw Refused("a graph is captured once; reset it before");
    if (&stream == &stream_at(0))
        throw Refused("the default stream cannot be captured");
    {
        const std::lock_guard lock(capture_mutex);
        if (capture.recorder != nullptr)
            throw Refused("one capture at a time");
        capture = {this, mode, std::this_thread::get_id()};
    }
    pool_ = pool == 0 ? die().new_pool() : pool;
    kept_ = std::make_shared<Kept>(pool_);
    lane_of(stream);
}

void Graph::capture_end() {
    if (!is_capturing(this))
        throw Refused("NPUGraph.capture_end without capture_begin");
    for (const Lane &lane : lanes_)
        lane.captured->set_recorder(nullptr);
    {
        const std::lock_guard lock(capture_mutex);
        capture = {};
    }
    die().end_capture(pool_);
    ended_ = true;
    if (const std::string text = fault(); !text.empty())
        throw Refused(text);
}

// Why it cannot be replayed.
std::string Graph::fault() const {
    const Lane &first = lanes_.front();
    for (size_t lane = 1; lane < lanes_.size(); ++lane) {
        const auto joined = first.before.find(lane);
        if (joined == first.before.end() || joined->second < lanes_[lane].nodes)
            return "a capture ended while stream " + std::to_string(lanes_[lane].captured->number()) +
                   " had work that the captured stream does not wait for";
    }
    for (const auto &[allocation, name] : used_)
        if (!die().exists(allocation))
            return "memory that a graph uses in " + name + " is gone";
    return "";
}

size_t Graph::lane_of(Stream &stream) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane)
        if (lanes_[lane].captured == &stream)
            return lane;
    lanes_.push_back({&stream, {}, 0});
    stream.set_recorder(this);
    return lanes_.size() - 1;
}

void Graph::append(Node node) {
    Lane &lane = lanes_[node.lane];
    nodes_.push_back(std::move(node));
    lane.before[nodes_.back().lane] = ++lane.nodes;
}

void Graph::put(Stream &stream, std::shared_ptr<Work> work, std::shared_ptr<Condition> condition) {
    remember(*work);
    append({Kind::work, lane_of(stream), 0, std::move(work), std::move(condition)});
}

size_t Graph::record(Stream &stream) {
    const size_t lane = lane_of(stream);
    append({Kind::record, lane, events_.size(), nullptr, nullptr});
    events_.push_back(lanes_[lane].before);
    return events_.size() - 1;
}

void Graph::wait(Stream &stream, size_t event) {
    const size_t lane = lane_of(stream);
    append({Kind::wait, lane, event, nullptr, nullptr});
    for (const auto &[other, nodes] : events_[event]) {
        size_t &before = lanes_[lane].before[other];
        before = std::max(before, nodes);
    }
}

void Graph::remember(const Work &work) {
    for (const void *address : work.touches) {
        const uint64_t allocation = die().allocation_of(address);
        if (allocation != 0 && die().pool_of(address) != pool_)
            used_.emplace(allocation, work.name);
    }
}

void Graph::replay(Stream &stream) {
    refuse_in_capture("NPUGraph.replay");
    if (!ended_)
        throw Refused("NPUGraph.replay before capture_end");
    if (const std::string text = fault(); !text.empty())
        throw Refused(text);
    ++replays_;
    replaying_.resize(lanes_.size());
    replaying_[0] = &stream;
    const auto begin = std::make_shared<FunctionWork>("graph replayed", [](uint64_t) {});
    stream.put(begin);
    for (size_t lane = 1; lane < lanes_.size(); ++lane) {
        Stream &captured = *lanes_[lane].captured;
        if (replaying_[lane] == nullptr)
            replaying_[lane] = captured.stays_in_replays() ? &captured : &next_stream();
        replaying_[lane]->put(std::make_shared<FunctionWork>("event awaited", [](uint64_t) {}),
                              std::make_shared<Reached>(stream, stream.last()));
    }
    std::vector<std::shared_ptr<Reached>> reached(events_.size());
    for (const Node &node : nodes_) {
        Stream &on = *replaying_[node.lane];
        if (node.kind == Kind::work) {
            on.put(node.work, node.condition, replays_);
        } else if (node.kind == Kind::wait) {
            on.put(std::make_shared<FunctionWork>("event awaited", [](uint64_t) {}), reached[node.event]);
        } else {
            reached[node.event] = std::make_shared<Reached>(on, on.last());
        }
    }
    stream.put(std::make_shared<FunctionWork>("graph ended", [kept = kept_](uint64_t) {})); // all lanes have joined it
}

void Graph::reset() {
    if (!ended_)
        return;
    ended_ = false;
    nodes_.clear();
    lanes_.clear();
    events_.clear();
    groups_.clear();
    used_.clear();
    kept_.reset();
}

void Graph::group_begin() { group_begin_ = nodes_.size(); }

size_t Graph::group_end() {
    if (!group_begin_ || !is_capturing(this))
        throw Refused("a group of a graph ends that has not begun");
    groups_.push_back({*group_begin_, nodes_.size()});
    group_begin_.reset();
    return groups_.size() - 1;
}

void Graph::update_begin(size_t group) {
    if (update)
        throw Refused("this thread updates a group already");
    update.emplace();
    for (size_t node = groups_.at(group).begin; node < groups_.at(group).end; ++node)
        if (nodes_[node].kind == Kind::work)
            update->works.push_back(nodes_[node].work);
}

void Graph::update_end() {
    const bool complete = update && update->next == update->works.size();
    update.reset();
    if (!complete)
        throw Refused("an update made fewer calls than the captured group has");
}

bool is_capturing() {
    const std::lock_guard lock(capture_mutex);
    return capture.recorder != nullptr;
}

bool is_capturing(const Recorder *recorder) {
    const std::lock_guard lock(capture_mutex);
    return capture.recorder == recorder;
}

void refuse_in_capture(const std::string &what) {
    const std::lock_guard lock(capture_mutex);
    if (forbids(capture))
        throw Refused(what + " while a stream is captured");
}

void refuse_allocation_in_capture() {
    const std::lock_guard lock(capture_mutex);
    if (forbids(capture) && capture.thread == std::this_thread::get_id())
        throw Refused("memory outside of the graph is allocated while a stream is captured");
}

std::shared_ptr<Work> next_updated_work() {
    if (!update)
        return nullptr;
    if (update->next == update->works.size())
        throw Refused("an update makes more calls than the captured group has");
    return update->works[update->next++];
}

} // namespace emulated_npu
