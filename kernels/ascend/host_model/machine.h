// Several devices in one time: their cores run in the order of their clocks, words become visible when they have
// arrived, and transfers share the memory and the link of each rank. The same launches take the same time again.
//
// Not modelled: caches (loads of lines that another core has just loaded cost the same), conflicts of banks and of
// equal addresses, switches between ranks, instructions of the scalar unit beside its accesses, the instruction cache.
#pragma once

#include <cstdint>
#include <queue>
#include <vector>

#include "core_clock.h"

namespace ascend_model {

class Device;

// A path of some bandwidth that transfers share: whatever is free of it from a transfer's start on is used.
class SharedPath {
  public:
    // Returns when bytes that start at `start` have passed.
    double pass(double start, double bytes, double bandwidth);
    double bytes() const { return bytes_; }

  private:
    static constexpr double slice_ns = 50;
    uint64_t first_free(uint64_t slice);

    std::vector<double> used_;       // ns of each slice
    std::vector<uint64_t> continue_; // a slice that is full: where to look on
    double bytes_ = 0;
};

class Machine {
  public:
    explicit Machine(uint32_t ranks) : shared_(ranks) {}

    // Runs what the devices, one per rank, have prepared. False after a violation of any.
    bool run(std::vector<Device *> &devices);

    // A transfer of `bytes` that begins at `start`, between `rank` and the memory of `owner`; returns when the memory
    // and links that it passes have moved it.
    double share(double start, double bytes, uint32_t rank, uint32_t owner, bool store);
    // Bytes that become visible at a time.
    void deliver(double at, uint8_t *to, const uint8_t *from, uint64_t bytes);

    // Bytes that left `rank` over its link.
    double sent(uint32_t rank) const { return shared_[rank].out.bytes(); }

  private:
    struct Shared {
        SharedPath memory, out, in;
    };
    struct Delivery {
        double at;
        uint64_t order;
        uint8_t *to;
        std::vector<uint8_t> bytes;
        bool operator<(const Delivery &other) const {
            return at != other.at ? at > other.at : order > other.order; // the earliest on top
        }
    };
    void deliver_until(double now);

    std::vector<Shared> shared_;
    std::priority_queue<Delivery> deliveries_;
    uint64_t order_ = 0;
};

} // namespace ascend_model
