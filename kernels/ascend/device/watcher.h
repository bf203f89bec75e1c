// What a kernel cannot see: that the process of a peer has ended. A thread of the host watches, and says so in the
// status line of this rank, which every wait of a kernel reads.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace ascend_device {

class Watcher {
  public:
    // `pidfds` [ranks]: readable once the process has ended, -1 for those that are not watched. `tell(peer)` is called
    // on the watcher's thread, once for each peer that has ended.
    Watcher(std::vector<int32_t> pidfds, std::function<void(uint32_t peer)> tell);
    ~Watcher();
    Watcher(const Watcher &) = delete;
    Watcher &operator=(const Watcher &) = delete;

  private:
    void run();

    std::vector<int32_t> pidfds_;
    std::function<void(uint32_t)> tell_;
    int stop_;
    std::thread thread_;
};

} // namespace ascend_device
