// Memory of the emulated NPU. It is mapped twice: the addresses that tensors carry can neither be read nor written, so
// that host code which uses one directly faults; the device works on a second mapping, the shadow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <unordered_set>
#include <vector>

#include "streams.h"

namespace emulated_npu {

class OutOfMemory : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Where host code reaches what lies at an address of the device; null: it is not one.
void *shadow(const void *address);
// Begin, length and where the host reaches the begin, of everything that the device has.
std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> address_ranges();
// Makes addresses of the device of a range that others have mapped, as windows in pooled memory.
void add_range(const void *begin, size_t bytes, void *shadow_begin);
void remove_range(const void *begin);

struct Usage {
    uint64_t total;
    uint64_t allocated;
    uint64_t peak;
    uint64_t reserved; // allocated, or kept for graphs
};

// Memory that a graph keeps; 0 is the common memory of the die.
using Pool = uint64_t;

// Memory is given back in the order of streams: what was freed may be used again by the stream it was allocated on at
// once, and by others when the streams that used it have come so far.
class Memory {
  public:
    // One die per process.
    explicit Memory(size_t bytes);

    // Raises `OutOfMemory`.
    void *allocate(size_t bytes, Stream &stream);
    void free(void *address) noexcept;
    // A stream other than the one it was allocated on uses the memory.
    void record_stream(const void *address, Stream &stream);
    Usage usage() const;
    void reset_peak();

    Pool new_pool();
    // A graph begins, or ceases, to use a pool.
    void keep(Pool pool);
    void release(Pool pool);
    // What was freed while a capture ran may now be used again by every stream.
    void end_capture(Pool pool);

    // The allocation that an address lies in: one number for each that was ever made; 0 if there is none.
    uint64_t allocation_of(const void *address) const;
    Pool pool_of(const void *address) const;
    bool exists(uint64_t allocation) const;

  private:
    // How far streams have to come before the memory is free for other streams.
    using Users = std::map<Stream *, Sequence>;
    struct Block {
        size_t bytes;
        Pool pool;
        uint64_t allocation; // 0: free
        Stream *stream;
        Users users;
    };
    using Blocks = std::map<size_t, Block>; // by offset

    void *allocate_from(Pool pool, size_t bytes, Stream &stream);
    bool ready(const Block &block, Stream &stream) const;
    Blocks::iterator find_free(Pool pool, size_t bytes, Stream &stream);
    Blocks::iterator split(Blocks::iterator block, size_t bytes);
    static std::set<Stream *> awaited(Block &block);
    bool unite(Blocks::iterator first, Blocks::iterator second);
    void join(Blocks::iterator block);
    void join_all();
    void set_free(Blocks::iterator block, bool free);
    void give_back(Pool pool);
    Blocks::const_iterator block_of(const void *address) const;
    bool wait_for_users();

    const size_t bytes_;
    char *device_;
    mutable std::mutex mutex_;
    Blocks blocks_;
    std::map<Pool, std::set<std::pair<size_t, size_t>>> free_; // (bytes, offset)
    std::map<Pool, size_t> keepers_;
    std::unordered_set<uint64_t> allocations_;
    uint64_t made_ = 0;
    Pool pools_ = 0;
    uint64_t allocated_ = 0;
    uint64_t peak_ = 0;
};

void open_die(size_t bytes);
// Raises `Refused` if none is open.
Memory &die();

} // namespace emulated_npu
