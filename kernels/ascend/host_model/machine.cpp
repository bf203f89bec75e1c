#include "machine.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "device.h"

namespace ascend_model {

uint64_t SharedPath::first_free(uint64_t slice) {
    uint64_t found = slice;
    while (found < continue_.size() && continue_[found] != found)
        found = continue_[found];
    while (slice < found && slice < continue_.size()) {
        const uint64_t next = continue_[slice];
        continue_[slice] = found;
        slice = next;
    }
    return found;
}

double SharedPath::pass(double start, double bytes, double bandwidth) {
    bytes_ += bytes;
    double rest = bytes / bandwidth, end = start;
    for (auto slice = static_cast<uint64_t>(start / slice_ns); rest > 0; ++slice) {
        slice = first_free(slice);
        while (used_.size() <= slice) {
            continue_.push_back(used_.size());
            used_.push_back(0);
        }
        const double taken = std::min(rest, slice_ns - used_[slice]);
        used_[slice] += taken;
        rest -= taken;
        if (slice_ns - used_[slice] < 1e-6)
            continue_[slice] = slice + 1;
        end = static_cast<double>(slice) * slice_ns + used_[slice];
    }
    return std::max(end, start + bytes / bandwidth);
}

bool Machine::run(std::vector<Device *> &devices) {
    for (uint32_t rank = 0; rank < devices.size(); ++rank)
        devices[rank]->enter_time(*this, rank);
    for (;;) {
        Device *next = nullptr;
        uint32_t next_core = 0;
        double least = 0;
        for (Device *device : devices)
            for (uint32_t core = 0; core < device->cores(); ++core)
                if (const double now = device->ready_at(core); now >= 0 && (next == nullptr || now < least)) {
                    next = device;
                    next_core = core;
                    least = now;
                }
        if (next == nullptr)
            break;
        deliver_until(least);
        next->resume(next_core);
        if (!next->violation().empty())
            break;
    }
    deliver_until(std::numeric_limits<double>::infinity());
    bool well = true;
    for (Device *device : devices) {
        device->leave_time();
        well = well && device->violation().empty();
    }
    return well;
}

double Machine::share(double start, double bytes, uint32_t rank, uint32_t owner, bool store) {
    double end = shared_[owner].memory.pass(start, bytes, times.memory_bandwidth);
    if (rank == owner)
        return end;
    Shared &from = shared_[store ? rank : owner], &to = shared_[store ? owner : rank];
    end = std::max(end, from.out.pass(start, bytes, times.link_bandwidth));
    return std::max(end, to.in.pass(start, bytes, times.link_bandwidth));
}

void Machine::deliver(double at, uint8_t *to, const uint8_t *from, uint64_t bytes) {
    deliveries_.push({at, order_++, to, {from, from + bytes}});
}

void Machine::deliver_until(double now) {
    while (!deliveries_.empty() && deliveries_.top().at <= now) {
        const Delivery &next = deliveries_.top();
        memcpy(next.to, next.bytes.data(), next.bytes.size());
        deliveries_.pop();
    }
}

} // namespace ascend_model
