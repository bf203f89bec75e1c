// Graphs: what is put on a stream while it is captured is kept, and replayed at the same addresses.
//
// Streams that wait for an event of a captured stream become part of the capture. A replay runs each of them on a
// stream of its own, ordered by the captured events only, so that a missing one shows as it does outside of graphs; but
// collectives stay on the stream of their group.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "memory.h"
#include "streams.h"

namespace emulated_npu {

// Which calls are refused while a capture runs: those of all threads, those of its own thread, or none.
enum class CaptureMode { global, thread_local_, relaxed };

class Graph final : public Recorder {
  public:
    Graph() = default;
    ~Graph() override { reset(); }
    Graph(const Graph &) = delete;
    Graph &operator=(const Graph &) = delete;

    // One capture at a time. Raises `Refused`.
    void capture_begin(Stream &stream, Pool pool, CaptureMode mode);
    // Ends the capture in any case; raises `Refused` if the graph cannot be replayed.
    void capture_end();
    void replay(Stream &stream);
    // The memory of the graph is given back when the last replay has ended. Waits for nothing: Python may drop a graph
    // on the thread of a stream.
    void reset();
    Pool pool() const override { return pool_; }

    // What is put on the captured streams between the two is one group, whose arguments an update may exchange.
    void group_begin();
    size_t group_end();
    // Calls of this thread go to the works of a group, in their order, until the update ends.
    void update_begin(size_t group);
    void update_end();

    void put(Stream &stream, std::shared_ptr<Work> work, std::shared_ptr<Condition> condition) override;
    size_t record(Stream &stream) override;
    void wait(Stream &stream, size_t event) override;

  private:
    enum class Kind { work, record, wait };
    struct Node {
        Kind kind;
        size_t lane;
        size_t event; // of a record, or the one waited for
        std::shared_ptr<Work> work;
        std::shared_ptr<Condition> condition;
    };
    // One captured stream, and how many nodes of each lane come before its next one.
    struct Lane {
        Stream *captured;
        std::map<size_t, size_t> before;
        size_t nodes = 0;
    };
    struct Group {
        size_t begin;
        size_t end;
    };

    size_t lane_of(Stream &stream);
    void append(Node node);
    void remember(const Work &work);
    std::string fault() const;

    // Keeps the memory of a pool as long as the graph or a replay of it lasts.
    class Kept;

    Pool pool_ = 0;
    std::shared_ptr<const Kept> kept_;
    std::vector<Node> nodes_;
    std::vector<Lane> lanes_;
    std::vector<std::map<size_t, size_t>> events_; // what comes before each
    std::vector<Group> groups_;
    std::optional<size_t> group_begin_;
    std::map<uint64_t, std::string> used_; // allocations of others, and by what
    std::vector<Stream *> replaying_;      // by lane; the first one is given at each replay
    bool ended_ = false;
    uint64_t replays_ = 0;
};

bool is_capturing();
bool is_capturing(const Recorder *recorder);
// Raises `Refused` if a capture forbids it to the calling thread.
void refuse_in_capture(const std::string &what);
void refuse_allocation_in_capture();

// The next work of the group that the calling thread updates; null if it updates none. Raises `Refused` after the last.
std::shared_ptr<Work> next_updated_work();

} // namespace emulated_npu
