#include "streams.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "counters.h"
#include "interpreter.h"

namespace emulated_npu {
namespace {

constexpr size_t stream_count = 33; // the default one, and as many as torch_npu gives out in turn
constexpr uint64_t longest_hold_calls = 24;
// A process that waits for another one without a call to its device must not hold that one up for ever.
constexpr auto longest_hold = std::chrono::milliseconds(3);

// One for all streams: work is large in comparison. Never destroyed, because threads may outlive the end of main.
struct Schedule {
    std::mutex mutex;
    std::condition_variable changed;
    int64_t seed = 0;
    uint64_t calls = 0; // of the host
    std::string failure;
};
Schedule &schedule() {
    static auto *made = new Schedule;
    return *made;
}

uint64_t mixed(uint64_t value) {
    value += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

void note_failure(const std::string &text) {
    if (schedule().failure.empty())
        schedule().failure = text;
}

// Those that have an owner, also before and after.
struct Owned {
    std::mutex mutex;
    std::vector<Stream *> made;
    std::vector<Stream *> free;
};
Owned &owned() {
    static auto *all = new Owned;
    return *all;
}

std::array<Stream *, stream_count> &streams() {
    static auto *made = [] {
        auto *all = new std::array<Stream *, stream_count>;
        for (size_t number = 0; number < stream_count; ++number)
            (*all)[number] = new Stream(static_cast<int64_t>(number));
        return all;
    }();
    return *made;
}

thread_local Stream *current = nullptr;

} // namespace

bool Reached::demand() {
    if (stream_.released_ >= sequence_)
        return false;
    stream_.released_ = sequence_;
    return true;
}

void Stream::put(std::shared_ptr<Work> work, std::shared_ptr<Condition> condition, uint64_t replay) {
    ++put_so_far_;
    if (recorder_ != nullptr) {
        recorder_->put(*this, std::move(work), std::move(condition));
        return;
    }
    count(work->name, work->bytes);
    const std::lock_guard lock(schedule().mutex);
    if (!started_) {
        std::thread([this] { run(); }).detach();
        started_ = true;
    }
    ++schedule().calls;
    ++last_;
    waiting_.push_back({std::move(work), std::move(condition), replay, last_, schedule().calls + draw(last_)});
    schedule().changed.notify_all();
}

uint64_t Stream::draw(Sequence sequence) const {
    if (schedule().seed <= 0)
        return 0;
    const uint64_t drawn = mixed(mixed(static_cast<uint64_t>(schedule().seed) * 64 + number_) + sequence);
    return drawn % 2 == 0 ? 0 : (drawn >> 8) % longest_hold_calls;
}

Sequence Stream::last() const {
    const std::lock_guard lock(schedule().mutex);
    return last_;
}

bool Stream::done(Sequence sequence) const {
    const std::lock_guard lock(schedule().mutex);
    return completed_ >= sequence;
}

void Stream::reach(Sequence sequence) {
    const OutsideInterpreter outside;
    std::unique_lock lock(schedule().mutex);
    ++schedule().calls;
    released_ = std::max(released_, sequence);
    schedule().changed.notify_all();
    schedule().changed.wait(lock, [&] { return completed_ >= sequence; });
}

void Stream::wait(Sequence sequence) {
    count("host synchronisation");
    reach(sequence);
    raise_failure();
}

bool Stream::wait_for(Sequence sequence, std::chrono::milliseconds most) {
    {
        const OutsideInterpreter outside;
        std::unique_lock lock(schedule().mutex);
        ++schedule().calls;
        released_ = std::max(released_, sequence);
        schedule().changed.notify_all();
        if (!schedule().changed.wait_for(lock, most, [&] { return completed_ >= sequence; }))
            return false;
    }
    count("host synchronisation");
    raise_failure();
    return true;
}

void Stream::hold(std::unique_lock<std::mutex> &lock, const Item &item) {
    const auto free = [&] {
        if (released_ >= item.sequence || schedule().seed == 0)
            return true;
        return schedule().seed > 0 && schedule().calls >= item.due;
    };
    if (schedule().seed < 0)
        schedule().changed.wait(lock, free);
    else
        schedule().changed.wait_for(lock, longest_hold, free);
}

void Stream::await(std::unique_lock<std::mutex> &lock, const Item &item) {
    Condition &condition = *item.condition;
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(condition.patience_s());
    while (!condition.holds()) {
        if (released_ >= item.sequence && condition.demand())
            schedule().changed.notify_all();
        if (condition.patience_s() == 0) {
            schedule().changed.wait(lock);
        } else if (schedule().changed.wait_until(lock, end) == std::cv_status::timeout && !condition.holds()) {
            note_failure(condition.lateness());
            return;
        }
    }
}

void Stream::run() {
    std::unique_lock lock(schedule().mutex);
    for (;;) {
        schedule().changed.wait(lock, [this] { return !waiting_.empty(); });
        Item item = waiting_.front();
        hold(lock, item);
        if (item.condition)
            await(lock, item);
        waiting_.pop_front();
        lock.unlock();
        std::string failure;
        try {
            item.work->run(item.replay);
        } catch (const std::exception &error) {
            failure = item.work->name + " failed on stream " + std::to_string(number_) + ": " + error.what();
        }
        const Sequence sequence = item.sequence;
        item = {};
        lock.lock();
        if (!failure.empty())
            note_failure(failure);
        completed_ = sequence;
        schedule().changed.notify_all();
    }
}

void set_seed(int64_t seed) {
    const std::lock_guard lock(schedule().mutex);
    schedule().seed = seed;
    schedule().changed.notify_all();
}

void look_again() {
    const std::lock_guard lock(schedule().mutex);
    schedule().changed.notify_all();
}

Stream &stream_at(int64_t number) {
    const auto index = static_cast<size_t>(number);
    if (number >= 0 && index < stream_count)
        return *streams()[index];
    const std::lock_guard lock(owned().mutex);
    if (number < 0 || index - stream_count >= owned().made.size())
        throw Refused("there is no stream " + std::to_string(number));
    return *owned().made[index - stream_count];
}

Stream &next_stream() {
    static std::mutex mutex;
    static size_t given = 0;
    const std::lock_guard lock(mutex);
    return *streams()[1 + given++ % (stream_count - 1)];
}

Stream &make_stream() {
    const std::lock_guard lock(owned().mutex);
    if (!owned().free.empty()) {
        Stream &stream = *owned().free.back();
        owned().free.pop_back();
        return stream;
    }
    owned().made.push_back(new Stream(static_cast<int64_t>(stream_count + owned().made.size())));
    return *owned().made.back();
}

void give_back_stream(Stream &stream) {
    stream.reach(stream.last());
    const std::lock_guard lock(owned().mutex);
    owned().free.push_back(&stream);
}

void drain_streams() {
    std::vector<Stream *> all(streams().begin(), streams().end());
    {
        const std::lock_guard lock(owned().mutex);
        all.insert(all.end(), owned().made.begin(), owned().made.end());
    }
    for (Stream *stream : all)
        stream->reach(stream->last());
}

void wait_for_all_streams() {
    count("host synchronisation");
    drain_streams();
    raise_failure();
}

Stream &current_stream() { return current == nullptr ? stream_at(0) : *current; }

Stream &exchange_current_stream(Stream &stream) {
    Stream &before = current_stream();
    current = &stream;
    return before;
}

void raise_failure() {
    const std::lock_guard lock(schedule().mutex);
    if (!schedule().failure.empty())
        throw Refused(schedule().failure);
}

std::string take_failure() {
    const std::lock_guard lock(schedule().mutex);
    return std::exchange(schedule().failure, "");
}

} // namespace emulated_npu
