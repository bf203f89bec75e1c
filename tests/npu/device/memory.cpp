#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "counters.h"
#include "faults.h"
#include "graphs.h"

namespace emulated_npu {
namespace {

constexpr size_t alignment = 512;
constexpr size_t segment_bytes = 64 * 1024; // that a graph's pool takes at least
constexpr Sequence end_of_capture = std::numeric_limits<Sequence>::max();

struct Range {
    const char *begin;
    size_t bytes;
    char *shadow_begin;
};
using Ranges = std::vector<Range>;

// Read without a lock, also by the handler of faults.
std::atomic<const Ranges *> ranges = new Ranges;
std::mutex ranges_mutex;

void replace_ranges(const std::function<void(Ranges &)> &change) {
    const std::lock_guard lock(ranges_mutex);
    auto *changed = new Ranges(*ranges.load());
    change(*changed);
    ranges = changed; // somebody may still read the old ones, which are small
}

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

std::unique_ptr<Memory> &opened() {
    static auto *memory = new std::unique_ptr<Memory>;
    return *memory;
}

} // namespace

void *shadow(const void *address) {
    const auto *place = static_cast<const char *>(address);
    for (const Range &range : *ranges.load())
        if (place >= range.begin && place < range.begin + range.bytes)
            return range.shadow_begin + (place - range.begin);
    return nullptr;
}

std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> address_ranges() {
    std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> all;
    for (const Range &range : *ranges.load())
        all.emplace_back(reinterpret_cast<uint64_t>(range.begin), range.bytes,
                         reinterpret_cast<uint64_t>(range.shadow_begin));
    return all;
}

void add_range(const void *begin, size_t bytes, void *shadow_begin) {
    replace_ranges([&](Ranges &all) {
        all.push_back({static_cast<const char *>(begin), bytes, static_cast<char *>(shadow_begin)});
    });
}

void remove_range(const void *begin) {
    replace_ranges([&](Ranges &all) {
        std::erase_if(all, [&](const Range &range) { return range.begin == static_cast<const char *>(begin); });
    });
}

Memory::Memory(size_t bytes) : bytes_(aligned(bytes)) {
    const int file = memfd_create("emulated-npu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes_)) != 0)
        throw Refused(std::string("its memory could not be made: ") + strerror(errno));
    void *device = mmap(nullptr, bytes_, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    void *readable = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (device == MAP_FAILED || readable == MAP_FAILED)
        throw Refused(std::string("its memory could not be mapped: ") + strerror(errno));
    device_ = static_cast<char *>(device);
    add_range(device, bytes_, readable);
    blocks_[0] = {bytes_, 0, 0, nullptr, {}};
    free_[0].insert({bytes_, 0});
}

void *Memory::allocate(size_t bytes, Stream &stream) {
    if (bytes == 0)
        return nullptr;
    const Pool pool = stream.recorder() != nullptr ? stream.recorder()->pool() : 0;
    if (pool == 0)
        refuse_allocation_in_capture();
    count("allocation", bytes);
    if (void *address = allocate_from(pool, aligned(bytes), stream))
        return address;
    join_all();
    if (void *address = allocate_from(pool, aligned(bytes), stream))
        return address;
    // Memory that streams have not come far enough for is waited for, as a device's allocator does before it gives up.
    if (pool == 0 && wait_for_users())
        if (void *address = allocate_from(pool, aligned(bytes), stream))
            return address;
    const Usage now = usage();
    throw OutOfMemory("emulated NPU out of memory: tried to allocate " + std::to_string(bytes) + " bytes; of " +
                      std::to_string(now.total) + " bytes " + std::to_string(now.allocated) + " are allocated and " +
                      std::to_string(now.reserved - now.allocated) + " kept for graphs");
}

void *Memory::allocate_from(Pool pool, size_t bytes, Stream &stream) {
    const std::lock_guard lock(mutex_);
    auto found = find_free(pool, bytes, stream);
    if (found == blocks_.end() && pool != 0) {
        found = find_free(0, std::max(bytes, segment_bytes), stream);
        if (found != blocks_.end()) {
            set_free(found, false);
            found = split(found, std::max(bytes, segment_bytes));
            found->second.pool = pool;
            set_free(found, true);
        }
    }
    if (found == blocks_.end())
        return nullptr;
    set_free(found, false);
    found = split(found, bytes);
    Block &block = found->second;
    block.allocation = ++made_;
    block.stream = &stream;
    block.users.clear();
    allocations_.insert(block.allocation);
    allocated_ += block.bytes;
    peak_ = std::max(peak_, allocated_);
    return device_ + found->first;
}

void Memory::free(void *address) noexcept {
    if (address == nullptr)
        return;
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(static_cast<size_t>(static_cast<char *>(address) - device_));
    if (found == blocks_.end() || found->second.allocation == 0)
        std::terminate(); // freed twice: nothing that goes on can be believed
    Block &block = found->second;
    block.users[block.stream] = 0; // now filled in with how far it is
    for (auto &[stream, sequence] : block.users)
        sequence = stream->recorder() != nullptr && block.pool != 0 ? end_of_capture : stream->last();
    allocations_.erase(block.allocation);
    allocated_ -= block.bytes;
    block.allocation = 0;
    set_free(found, true);
    const Pool pool = block.pool;
    join(found);
    if (pool != 0 && keepers_[pool] == 0)
        give_back(pool);
}

void Memory::record_stream(const void *address, Stream &stream) {
    const std::lock_guard lock(mutex_);
    if (const auto found = block_of(address); found != blocks_.end())
        blocks_[found->first].users[&stream] = 0;
}

bool Memory::ready(const Block &block, Stream &stream) const {
    return std::all_of(block.users.begin(), block.users.end(), [&](const auto &user) {
        return user.first == &stream || (user.second != end_of_capture && user.first->done(user.second));
    });
}

Memory::Blocks::iterator Memory::find_free(Pool pool, size_t bytes, Stream &stream) {
    auto &free = free_[pool];
    for (auto candidate = free.lower_bound({bytes, 0}); candidate != free.end(); ++candidate) {
        const auto block = blocks_.find(candidate->second);
        if (ready(block->second, stream))
            return block;
    }
    return blocks_.end();
}

// The first `bytes` of a block that is in no list; the rest stays free.
Memory::Blocks::iterator Memory::split(Blocks::iterator block, size_t bytes) {
    if (block->second.bytes == bytes)
        return block;
    Block rest = block->second;
    rest.bytes -= bytes;
    block->second.bytes = bytes;
    set_free(blocks_.emplace(block->first + bytes, rest).first, true);
    return block;
}

void Memory::set_free(Blocks::iterator block, bool free) {
    auto &list = free_[block->second.pool];
    if (free)
        list.insert({block->second.bytes, block->first});
    else
        list.erase({block->second.bytes, block->first});
}

// The streams that a free block waits for.
std::set<Stream *> Memory::awaited(Block &block) {
    std::erase_if(block.users,
                  [](const auto &user) { return user.second != end_of_capture && user.first->done(user.second); });
    std::set<Stream *> streams;
    for (const auto &[stream, sequence] : block.users)
        streams.insert(stream);
    return streams;
}

// Makes one of two free blocks of a pool, which then waits for what each of them waited for.
bool Memory::unite(Blocks::iterator first, Blocks::iterator second) {
    if (first->second.allocation != 0 || second->second.allocation != 0 || first->second.pool != second->second.pool)
        return false;
    set_free(first, false);
    set_free(second, false);
    first->second.bytes += second->second.bytes;
    for (const auto &[stream, sequence] : second->second.users) {
        Sequence &latest = first->second.users[stream];
        latest = std::max(latest, sequence);
    }
    blocks_.erase(second);
    set_free(first, true);
    return true;
}

// A free block with its free neighbours, where that makes nothing wait for more streams.
void Memory::join(Blocks::iterator block) {
    const auto alike = [](Blocks::iterator first, Blocks::iterator second) {
        return first->second.allocation == 0 && second->second.allocation == 0 &&
               awaited(first->second) == awaited(second->second);
    };
    if (const auto next = std::next(block); next != blocks_.end() && alike(block, next))
        unite(block, next);
    if (block != blocks_.begin() && alike(std::prev(block), block))
        unite(std::prev(block), block);
}

// All free neighbours: larger blocks, for which more streams may have to be waited for.
void Memory::join_all() {
    const std::lock_guard lock(mutex_);
    for (auto block = blocks_.begin(); block != blocks_.end();)
        if (const auto next = std::next(block); next == blocks_.end() || !unite(block, next))
            block = next;
}

bool Memory::wait_for_users() {
    if (is_capturing())
        return false;
    wait_for_all_streams();
    return true;
}

Usage Memory::usage() const {
    const std::lock_guard lock(mutex_);
    uint64_t kept = 0;
    for (const auto &[pool, list] : free_)
        for (const auto &[bytes, offset] : list)
            kept += pool == 0 ? 0 : bytes;
    return {bytes_, allocated_, peak_, allocated_ + kept};
}

void Memory::reset_peak() {
    const std::lock_guard lock(mutex_);
    peak_ = allocated_;
}

Pool Memory::new_pool() {
    const std::lock_guard lock(mutex_);
    return ++pools_;
}

void Memory::keep(Pool pool) {
    const std::lock_guard lock(mutex_);
    ++keepers_[pool];
}

void Memory::release(Pool pool) {
    const std::lock_guard lock(mutex_);
    if (--keepers_[pool] == 0)
        give_back(pool);
}

// What no graph keeps any more belongs to the die again.
void Memory::give_back(Pool pool) {
    std::vector<size_t> offsets;
    for (const auto &[bytes, offset] : free_[pool])
        offsets.push_back(offset);
    for (const size_t offset : offsets) {
        const auto block = blocks_.find(offset);
        if (block == blocks_.end() || block->second.pool != pool)
            continue;
        set_free(block, false);
        block->second.pool = 0;
        set_free(block, true);
        join(block);
    }
}

void Memory::end_capture(Pool pool) {
    const std::lock_guard lock(mutex_);
    for (const auto &[bytes, offset] : free_[pool])
        for (auto &[stream, sequence] : blocks_[offset].users)
            sequence = sequence == end_of_capture ? 0 : sequence;
}

Memory::Blocks::const_iterator Memory::block_of(const void *address) const {
    const auto *place = static_cast<const char *>(address);
    if (place < device_ || place >= device_ + bytes_)
        return blocks_.end();
    return std::prev(blocks_.upper_bound(static_cast<size_t>(place - device_)));
}

uint64_t Memory::allocation_of(const void *address) const {
    const std::lock_guard lock(mutex_);
    const auto found = block_of(address);
    return found == blocks_.end() ? 0 : found->second.allocation;
}

Pool Memory::pool_of(const void *address) const {
    const std::lock_guard lock(mutex_);
    const auto found = block_of(address);
    return found == blocks_.end() ? 0 : found->second.pool;
}

bool Memory::exists(uint64_t allocation) const {
    const std::lock_guard lock(mutex_);
    return allocations_.contains(allocation);
}

void open_die(size_t bytes) {
    if (opened())
        throw Refused("this process has a die already");
    opened() = std::make_unique<Memory>(bytes);
    report_host_accesses();
}

Memory &die() {
    if (!opened())
        throw Refused("this process has opened no die");
    return *opened();
}

} // namespace emulated_npu
