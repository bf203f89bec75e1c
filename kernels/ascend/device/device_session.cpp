#include "device_session.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "../../host/checksum.h"
#include "../../host/routing.h"
#include "../launch/segments.h"
#include "../words.h"

namespace ascend_device {
namespace {

using namespace ascend_kernels;

// GetSystemCycle counts 50 a microsecond.
constexpr uint64_t cycle_ns = 20;
constexpr int32_t signals_ms = 50;

std::vector<int32_t> duplicates(const ExchangeSession &session) {
    std::vector<int32_t> copies;
    for (uint32_t peer = 0; peer < session.layout->ranks; ++peer) {
        const int32_t pidfd = session.peer_pidfds[peer];
        copies.push_back(pidfd < 0 ? -1 : fcntl(pidfd, F_DUPFD_CLOEXEC, 0));
        if (pidfd >= 0 && copies.back() < 0)
            throw std::system_error(errno, std::generic_category(), "the descriptor of a peer's process");
    }
    return copies;
}

uint64_t staging_bytes(const ExchangeLayout &layout) {
    const uint64_t ids = uint64_t{layout.max_tokens} * layout.topk * sizeof(int64_t);
    return std::max<uint64_t>({ids, layout.ranks * layout.mailbox_bytes, EXCHANGE_REFUSAL_BYTES, sizeof(uint64_t)});
}

} // namespace

bool Released::signal_wants_to_end() {
    if (interpreter_.check_signals == nullptr)
        return false;
    interpreter_.acquire(released_);
    const bool wanted = interpreter_.check_signals() != 0;
    released_ = interpreter_.release();
    return wanted;
}

DeviceSession::DeviceSession(ExchangeSession &session, uint32_t cores, uint32_t launches)
    : session_(session), device_(current_device()), cores_(cores != 0 ? cores : vector_cores(device_)),
      windows_(session.layout->ranks * sizeof(uint64_t)), workspace_(WorkspaceBytes(*session.layout, cores_)),
      mailbox_(std::max<uint64_t>(session.layout->mailbox_bytes, EXCHANGE_REFUSAL_BYTES)),
      staging_(staging_bytes(*session.layout)), staging_bytes_(staging_bytes(*session.layout)),
      blocks_(launches, (cores_ + 1) * sizeof(uint64_t), workspace_.address()),
      tell_blocks_(1, 0, workspace_.address()), beside_word_(sizeof(uint64_t)), pidfds_(duplicates(session)) {
    require(aclrtMemcpy(windows_.at(), windows_.bytes(), session.windows, windows_.bytes(), ACL_MEMCPY_HOST_TO_DEVICE),
            "aclrtMemcpy");
    watcher_.emplace(pidfds_, [this](uint32_t peer) { note_ended(peer); });
}

DeviceSession::~DeviceSession() {
    // On any thread; where that has chosen no device, CANN would keep the memory.
    aclrtSetDevice(device_);
    watcher_.reset();
    // A capture lets nobody wait for what `tell` has launched.
    aclrtSynchronizeStream(beside_stream_.get());
    for (const int32_t pidfd : pidfds_)
        if (pidfd >= 0)
            close(pidfd);
}

void DeviceSession::use_stream(aclrtStream stream, bool deferred) {
    if (deferred && session_.layout->slots != 1)
        throw std::runtime_error("launches that nobody waits for need an exchange with one slot; slots=" +
                                 std::to_string(session_.layout->slots));
    stream_ = stream;
    deferred_ = deferred;
}

KernelArguments DeviceSession::common() const {
    KernelArguments arguments = {};
    arguments.layout = *session_.layout;
    arguments.windows = windows_.address();
    arguments.workspace = workspace_.address();
    arguments.timeout_cycles = session_.timeout_ns / cycle_ns;
    arguments.rank = session_.rank;
    return arguments;
}

template <class Arguments>
Block &DeviceSession::ready(Kernel kernel, uint32_t cores, const Arguments &arguments,
                            const std::vector<uint64_t> &segments) {
    Block &block = blocks_.take();
    Arguments located = arguments;
    block.kernel = kernel;
    block.cores = cores;
    block.bytes = sizeof located;
    if constexpr (requires { located.segments; })
        if (!segments.empty()) {
            located.segments = blocks_.extra_address(block);
            memcpy(blocks_.extra(block), segments.data(), segments.size() * sizeof(uint64_t));
            block.bytes = blocks_.extra_offset() + segments.size() * sizeof(uint64_t);
        }
    memcpy(blocks_.arguments(block), &located, sizeof located);
    return block;
}

Block &DeviceSession::ready_dispatch(const ExchangeDispatch &call) {
    const ExchangeLayout &layout = *session_.layout;
    DispatchArguments arguments = {};
    arguments.common = common();
    arguments.x = reinterpret_cast<uint64_t>(call.x);
    arguments.x_stride = call.x_stride;
    arguments.ids = reinterpret_cast<uint64_t>(call.ids);
    arguments.positions = reinterpret_cast<uint64_t>(call.positions);
    arguments.counts = reinterpret_cast<uint64_t>(call.counts);
    arguments.matrix = reinterpret_cast<uint64_t>(call.matrix);
    arguments.ids_bytes = call.ids_bytes;
    arguments.tokens = call.tokens;
    arguments.kind = call.kind;
    arguments.part = call.part;
    arguments.continues = call.continues;
    arguments.row_unit = RowUnit(layout, call.tokens, cores_);
    routed_.erase(call.positions);
    // Too many tokens are refused by the kernel, together with the other ranks.
    if (call.kind != EXCHANGE_PREFILL || call.tokens > layout.max_tokens || defers())
        return ready(dispatch_kernel, cores_, arguments);
    const std::vector<uint32_t> routed = count_routed(call);
    const auto rows = std::count_if(routed.begin(), routed.end(), [](uint32_t times) { return times > 0; });
    arguments.row_unit = RowUnit(layout, static_cast<uint64_t>(rows), cores_);
    const auto segments =
        CutRows(layout, arguments.row_unit, call.tokens, cores_, [&routed](uint64_t token) { return routed[token]; });
    routed_[call.positions] = routed;
    return ready(dispatch_kernel, cores_, arguments, segments);
}

std::vector<uint32_t> DeviceSession::count_routed(const ExchangeDispatch &call) {
    const uint64_t topk = session_.layout->topk, pairs = call.tokens * topk;
    fetch(staging_.at(), reinterpret_cast<uint64_t>(call.ids), pairs * call.ids_bytes);
    const ascend_moe::Routing ids(staging_.at(), call.ids_bytes);
    std::vector<uint32_t> routed(call.tokens);
    for (uint64_t pair = 0; pair < pairs; ++pair)
        routed[pair / topk] += ids[pair] >= 0;
    return routed;
}

Block &DeviceSession::ready_combine(const ExchangeCombine &call, bool only_meet) {
    CombineArguments arguments = {};
    arguments.common = common();
    arguments.positions = reinterpret_cast<uint64_t>(call.positions);
    arguments.weights = reinterpret_cast<uint64_t>(call.weights);
    arguments.out = reinterpret_cast<uint64_t>(call.out);
    arguments.out_stride = call.out_stride;
    arguments.tokens = call.tokens;
    arguments.slot = call.slot;
    arguments.part = call.part;
    arguments.only_meet = only_meet;
    const auto known = routed_.find(call.positions);
    if (only_meet || known == routed_.end())
        return ready(combine_kernel, cores_, arguments);
    // A row is read for each place of a token, and one is written.
    const auto segments = CutEvenly(call.tokens, session_.layout->hidden / sum_unit, cores_,
                                    [&](uint64_t token) { return uint64_t{1} + known->second[token]; });
    return ready(combine_kernel, cores_, arguments, segments);
}

Block &DeviceSession::ready_announce(uint32_t kind, const uint8_t *block, uint32_t bytes, uint32_t tokens,
                                     uint32_t error, int64_t detail) {
    memcpy(staging_.at(), block, bytes);
    if (bytes > 0)
        copy_async(mailbox_.at(), staging_.at(), bytes, ACL_MEMCPY_HOST_TO_DEVICE, stream_);
    AnnounceArguments arguments = {};
    arguments.common = common();
    arguments.block = mailbox_.address();
    arguments.detail = detail;
    arguments.block_bytes = bytes;
    arguments.tokens = tokens;
    arguments.kind = kind;
    arguments.error = error;
    arguments.block_check = ascend_moe::block_checksum(block, bytes);
    return ready(announce_kernel, 1, arguments);
}

Verdict DeviceSession::launch_and_wait(Block &block) {
    launch(block);
    wait();
    const Verdict verdict = blocks_.verdict(block);
    blocks_.give_back(block);
    return verdict;
}

Verdict DeviceSession::check() {
    wait();
    return blocks_.first_fault();
}

// Every wait of a kernel has a deadline, and so this has one.
void DeviceSession::wait() {
    Released released(session_.interpreter);
    bool interrupted = false;
    for (;;) {
        const aclError code = aclrtSynchronizeStreamWithTimeout(stream_, signals_ms);
        if (code == ACL_SUCCESS)
            return;
        if (code != ACL_ERROR_RT_STREAM_SYNC_TIMEOUT)
            throw RuntimeRefused("aclrtSynchronizeStreamWithTimeout", code);
        if (!interrupted && released.signal_wants_to_end()) {
            interrupted = true;
            Verdict own = {};
            own.result = EXCHANGE_PEER_FAILED;
            own.culprit = session_.rank;
            own.step = session_.step;
            own.epoch = session_.epoch;
            tell(StatusWord(own));
        }
    }
}

void DeviceSession::fetch(void *to, uint64_t from, uint64_t bytes) {
    if (bytes == 0)
        return;
    if (bytes > staging_bytes_)
        throw std::length_error("a copy of " + std::to_string(bytes) + " bytes for " + std::to_string(staging_bytes_));
    copy_async(staging_.at(), reinterpret_cast<const void *>(from), bytes, ACL_MEMCPY_DEVICE_TO_HOST, stream_);
    synchronise(stream_);
    if (to != staging_.at())
        memcpy(to, staging_.at(), bytes);
}

std::optional<uint32_t> DeviceSession::dead_peer() const {
    const int64_t dead = dead_.load(std::memory_order_acquire);
    return dead < 0 ? std::nullopt : std::optional(static_cast<uint32_t>(dead));
}

// With beside_ held.
uint64_t DeviceSession::read_status(uint32_t source) {
    copy_async(beside_word_.at(), reinterpret_cast<const void *>(own_status(source)), sizeof(uint64_t),
               ACL_MEMCPY_DEVICE_TO_HOST, beside_stream_.get());
    synchronise(beside_stream_.get());
    uint64_t word;
    memcpy(&word, beside_word_.at(), sizeof word);
    return word;
}

// Stores `word` in the own status line, with beside_ held, and returns what stands there then: what this rank has said
// about an earlier failure stays.
uint64_t DeviceSession::keep_status(uint64_t word) {
    // @protocol keep-finding
    if (const uint64_t said = read_status(session_.rank); said != 0)
        return said;
    memcpy(beside_word_.at(), &word, sizeof word);
    copy_async(reinterpret_cast<void *>(own_status(session_.rank)), beside_word_.at(), sizeof word,
               ACL_MEMCPY_HOST_TO_DEVICE, beside_stream_.get());
    synchronise(beside_stream_.get());
    return word;
}

// The own line first, by a copy that needs no core: a kernel that waits on all cores ends by it, and then the kernel
// that tells the others finds a core.
void DeviceSession::tell(uint64_t word, uint64_t value, uint64_t region) {
    const std::lock_guard lock(beside_);
    // The calling thread may be one that has not chosen a device yet.
    require(aclrtSetDevice(device_), "aclrtSetDevice");
    if (std::exchange(told_, true))
        return;
    TellArguments arguments = {};
    arguments.common = common();
    arguments.word = keep_status(word);
    arguments.value = value;
    arguments.region = region;
    Block &block = tell_blocks_.take();
    block.kernel = tell_kernel;
    block.cores = 1;
    block.bytes = sizeof arguments;
    memcpy(tell_blocks_.arguments(block), &arguments, sizeof arguments);
    tell_blocks_.launch(block, beside_stream_.get());
    synchronise(beside_stream_.get());
    tell_blocks_.give_back(block);
}

bool DeviceSession::reports_loss_of(uint32_t peer) {
    return dead_peer() == std::optional(peer) && !std::exchange(loss_reported_, true);
}

// On the watcher's thread.
void DeviceSession::note_ended(uint32_t peer) {
    const std::lock_guard lock(beside_);
    try {
        require(aclrtSetDevice(device_), "aclrtSetDevice");
        if (StatusResult(read_status(peer)) == EXCHANGE_PEER_CLOSED)
            return;
        int64_t none = -1;
        dead_.compare_exchange_strong(none, peer, std::memory_order_release);
        Verdict lost = {};
        lost.result = EXCHANGE_PEER_LOST;
        lost.culprit = peer;
        // @protocol watch-processes
        keep_status(StatusWord(lost));
    } catch (const RuntimeRefused &) {
        // The device does not answer: waits end at their deadlines, and the next call reports what CANN says.
        int64_t none = -1;
        dead_.compare_exchange_strong(none, peer, std::memory_order_release);
    }
}

} // namespace ascend_device
