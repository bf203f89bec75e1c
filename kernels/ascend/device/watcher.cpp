#include "watcher.h"

#include <cerrno>
#include <system_error>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace ascend_device {

Watcher::Watcher(std::vector<int32_t> pidfds, std::function<void(uint32_t)> tell)
    : pidfds_(std::move(pidfds)), tell_(std::move(tell)), stop_(eventfd(0, EFD_CLOEXEC)) {
    if (stop_ < 0)
        throw std::system_error(errno, std::generic_category(), "eventfd");
    thread_ = std::thread([this] { run(); });
}

Watcher::~Watcher() {
    const uint64_t one = 1;
    // An eventfd that is far from its limit takes it.
    while (write(stop_, &one, sizeof one) < 0 && errno == EINTR) {
    }
    thread_.join();
    close(stop_);
}

void Watcher::run() {
    std::vector<pollfd> entries;
    for (const int32_t pidfd : pidfds_)
        entries.push_back({pidfd, POLLIN, 0}); // poll passes over -1
    entries.push_back({stop_, POLLIN, 0});
    for (;;) {
        if (poll(entries.data(), entries.size(), -1) < 0) {
            if (errno == EINTR)
                continue;
            return;
        }
        if (entries.back().revents != 0)
            return;
        for (uint32_t peer = 0; peer + 1 < entries.size(); ++peer)
            if (entries[peer].revents != 0) {
                entries[peer].fd = -1;
                tell_(peer);
            }
    }
}

} // namespace ascend_device
