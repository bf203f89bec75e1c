#include "device_session.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "../../host/checksum.h"
#include "../../host/routing.h"
#include "../../host/waiting.h"
#include "../launch/segments.h"
#include "../words.h"

namespace ascend_device {
namespace {

using namespace ascend_kernels;

constexpr int32_t signals_ms = 50;
constexpr uint64_t clock_is_old_ns = 1'000'000'000;
constexpr uint32_t stamps = 5;

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

uint64_t staging_bytes(const ExchangeLayout &layout, uint32_t cores) {
    const uint64_t ids = uint64_t{layout.max_tokens} * layout.topk * sizeof(int64_t);
    const uint64_t segments = (cores + 1) * sizeof(uint64_t);
    const uint64_t headers = layout.ranks * uint64_t{EXCHANGE_UNIT_BYTES};
    return std::max<uint64_t>({ids, segments, headers, layout.ranks * layout.mailbox_bytes, EXCHANGE_REFUSAL_BYTES});
}

template <class Arguments> ExchangeLaunch launch_of(Kernel kernel, uint32_t cores, const Arguments &arguments) {
    ExchangeLaunch launch = {kernel, cores, {}};
    static_assert(sizeof arguments <= sizeof launch.arguments);
    memcpy(launch.arguments, &arguments, sizeof arguments);
    return launch;
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

DeviceSession::DeviceSession(ExchangeSession &session, uint32_t cores)
    : session_(session), device_(current_device()), cores_(cores != 0 ? cores : vector_cores(device_)),
      windows_(session.layout->ranks * sizeof(uint64_t)), ends_(uint64_t{cores_} * EXCHANGE_LINE_BYTES),
      mailbox_(std::max<uint64_t>(session.layout->mailbox_bytes, EXCHANGE_REFUSAL_BYTES)),
      segments_((cores_ + 1) * sizeof(uint64_t)), staging_(staging_bytes(*session.layout, cores_)),
      staging_bytes_(staging_bytes(*session.layout, cores_)),
      verdicts_(WorkspaceBytes(*session.layout, cores_), own(session.layout->status), session.rank,
                session.layout->ranks),
      beside_word_(sizeof(uint64_t)), pidfds_(duplicates(session)) {
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
    if (stream != stream_ || cores_of_stream_ == 0)
        cores_of_stream_ = std::min(cores_, vector_cores_of(stream));
    stream_ = stream;
    deferred_ = deferred;
}

KernelArguments DeviceSession::common() const {
    KernelArguments arguments = {};
    arguments.layout = *session_.layout;
    arguments.windows = windows_.address();
    arguments.workspace = verdicts_.workspace();
    arguments.ends = ends_.address();
    arguments.steps = steps_.of_dispatches();
    arguments.timeout_cycles = session_.timeout_ns / cycle_ns;
    arguments.rank = session_.rank;
    return arguments;
}

DispatchArguments DeviceSession::arguments_of(const ExchangeDispatch &call) const {
    DispatchArguments arguments = {};
    arguments.common = common();
    arguments.x = reinterpret_cast<uint64_t>(call.x);
    arguments.x_stride = call.x_stride;
    arguments.ids = reinterpret_cast<uint64_t>(call.ids);
    arguments.positions = reinterpret_cast<uint64_t>(call.positions);
    arguments.counts = reinterpret_cast<uint64_t>(call.counts);
    arguments.matrix = reinterpret_cast<uint64_t>(call.matrix);
    arguments.totals = reinterpret_cast<uint64_t>(call.totals);
    arguments.ids_bytes = call.ids_bytes;
    arguments.tokens = call.tokens;
    arguments.kind = call.kind;
    arguments.part = call.part;
    arguments.continues = call.continues;
    arguments.row_unit = RowUnit(*session_.layout);
    return arguments;
}

ExchangeLaunch DeviceSession::ready_dispatch(const ExchangeDispatch &call, uint64_t most_rows) {
    DispatchArguments arguments = arguments_of(call);
    // Where a slot begins is told by its rows as well, but for the only one.
    if (ExchangeLayout &layout = arguments.common.layout; most_rows > 0 && layout.slots == 1)
        layout.capacity = std::min(layout.capacity, most_rows);
    arguments.common.fault = verdicts_.fault();
    routed_.erase(call.positions);
    return launch_of(dispatch_kernel, cores_of_stream_, arguments);
}

Verdict DeviceSession::dispatch(const ExchangeDispatch &call) {
    const ExchangeLayout &layout = *session_.layout;
    DispatchArguments arguments = arguments_of(call);
    routed_.erase(call.positions);
    // Too many tokens are refused by the kernel, together with the other ranks.
    if (call.kind == EXCHANGE_PREFILL && call.tokens <= layout.max_tokens) {
        const std::vector<uint32_t> routed = count_routed(call);
        arguments.segments = use_segments(CutRows(layout, arguments.row_unit, call.tokens, cores_of_stream_,
                                                  [&routed](uint64_t token) { return routed[token]; }));
        routed_[call.positions] = routed;
    }
    return launch_and_wait(launch_of(dispatch_kernel, cores_of_stream_, arguments));
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

// Puts the bounds of the cores' segments where the next launch, which is waited for, reads them.
uint64_t DeviceSession::use_segments(const std::vector<uint64_t> &segments) {
    memcpy(staging_.at(), segments.data(), segments.size() * sizeof(uint64_t));
    copy_async(segments_.at(), staging_.at(), segments.size() * sizeof(uint64_t), ACL_MEMCPY_HOST_TO_DEVICE, stream_);
    return segments_.address();
}

CombineArguments DeviceSession::arguments_of(const ExchangeCombine &call, bool only_meet) const {
    CombineArguments arguments = {};
    arguments.common = common();
    arguments.common.steps = steps_.of_combines();
    arguments.positions = reinterpret_cast<uint64_t>(call.positions);
    arguments.weights = reinterpret_cast<uint64_t>(call.weights);
    arguments.out = reinterpret_cast<uint64_t>(call.out);
    arguments.out_stride = call.out_stride;
    arguments.tokens = call.tokens;
    arguments.slot = call.slot;
    arguments.part = call.part;
    arguments.only_meet = only_meet;
    arguments.layer = call.layer;
    return arguments;
}

ExchangeLaunch DeviceSession::ready_combine(const ExchangeCombine &call, bool only_meet) {
    CombineArguments arguments = arguments_of(call, only_meet);
    arguments.common.fault = verdicts_.fault();
    return launch_of(combine_kernel, cores_of_stream_, arguments);
}

Verdict DeviceSession::combine(const ExchangeCombine &call, bool only_meet) {
    CombineArguments arguments = arguments_of(call, only_meet);
    // A row is read for each place of a token, and one is written.
    if (const auto known = routed_.find(call.positions); !only_meet && known != routed_.end())
        arguments.segments =
            use_segments(CutEvenly(call.tokens, session_.layout->hidden / SumUnit(*session_.layout), cores_of_stream_,
                                   [&](uint64_t token) { return uint64_t{1} + known->second[token]; }));
    return launch_and_wait(launch_of(combine_kernel, cores_of_stream_, arguments));
}

Verdict DeviceSession::announce(uint32_t kind, const uint8_t *block, uint32_t bytes, uint32_t tokens, uint32_t error,
                                int64_t detail) {
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
    return launch_and_wait(launch_of(announce_kernel, 1, arguments));
}

Verdict DeviceSession::launch_and_wait(const ExchangeLaunch &launch) {
    put(launch, stream_);
    copy_verdicts_and_wait();
    const Verdict verdict = verdicts_.last();
    // What a poisoned session follows from may have been told to a launch that nobody waited for.
    const bool is_explained = verdict.result == EXCHANGE_POISONED && verdicts_.kept_fault().result != EXCHANGE_OK;
    return is_explained ? settle(verdicts_.kept_fault()) : verdict;
}

Verdict DeviceSession::check() {
    copy_verdicts_and_wait();
    return settle(verdicts_.found());
}

void DeviceSession::copy_verdicts_and_wait() {
    verdicts_.copy(stream_);
    if (session_.trace != nullptr)
        steps_.fetch(stream_, StepRing::waited);
    wait();
    write_down_steps(StepRing::waited, verdicts_.found());
}

void DeviceSession::fetch_verdicts(aclrtStream stream, uint32_t place) {
    verdicts_.fetch(stream, place);
    if (session_.trace != nullptr)
        steps_.fetch(stream, place);
}

Verdict DeviceSession::fetched(uint32_t place) {
    const Verdict found = verdicts_.fetched(place);
    write_down_steps(place, found);
    return found;
}

// Asks the device's clock, for which it waits, only if nothing was `found`: else the device may not answer soon.
void DeviceSession::write_down_steps(uint32_t place, const Verdict &found) {
    if (session_.trace == nullptr)
        return;
    if (found.result == EXCHANGE_OK && ascend_moe::now_ns() - clock_asked_ns_ > clock_is_old_ns)
        set_clock();
    steps_.write_down(place, clock_, *session_.layout, *session_.trace);
}

void DeviceSession::trace(ExchangeTrace *trace) {
    {
        // Launches on other streams, too, keep the word that asks for the times of steps as they found it.
        Released released(session_.interpreter);
        require(aclrtSynchronizeDevice(), "aclrtSynchronizeDevice");
    }
    if (session_.trace != nullptr) {
        steps_.fetch(stream_, StepRing::waited);
        synchronise(stream_);
        write_down_steps(StepRing::waited, {});
    }
    constexpr uint64_t line = EXCHANGE_LINE_BYTES / sizeof(uint64_t);
    std::vector<uint64_t> state((1 + 2 * session_.layout->slots) * line);
    const uint64_t bytes = state.size() * sizeof(uint64_t);
    auto *own_state = reinterpret_cast<void *>(own(session_.layout->state));
    require(aclrtMemcpy(state.data(), bytes, own_state, bytes, ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
    for (uint64_t first = 0; first < state.size(); first += line)
        state[first + state_timed] = trace != nullptr;
    if (trace != nullptr) {
        steps_.begin(state[0]);
        set_clock();
    }
    require(aclrtMemcpy(own_state, bytes, state.data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");
    session_.trace = trace;
}

// The narrowest of some looks at both clocks counts. On a stream of its own, that no other thread waits for: a kernel
// may hold all cores until the watcher has told it of a death.
void DeviceSession::set_clock() {
    const Released released(session_.interpreter);
    StampArguments arguments = {};
    arguments.common = common();
    arguments.to = steps_.stamp();
    for (uint32_t i = 0; i < stamps; ++i) {
        const uint64_t before_ns = ascend_moe::now_ns();
        put(launch_of(stamp_kernel, 1, arguments), steps_.stamps());
        synchronise(steps_.stamps());
        const uint64_t after_ns = ascend_moe::now_ns();
        clock_.set(steps_.read_stamp(), before_ns, after_ns);
    }
    clock_asked_ns_ = ascend_moe::now_ns();
}

// A fault is reported once; one that another rank has told stays where it is told, for the session is lost.
Verdict DeviceSession::settle(const Verdict &found) {
    if (found.result != EXCHANGE_OK)
        verdicts_.forget_fault(stream_);
    return found;
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
    if (bytes > 0)
        fetch({{to, from, bytes}});
}

void DeviceSession::fetch(const std::vector<Piece> &pieces) {
    uint64_t bytes = 0;
    for (const Piece &piece : pieces)
        bytes += piece.bytes;
    if (bytes > staging_bytes_)
        throw std::length_error("copies of " + std::to_string(bytes) + " bytes for " + std::to_string(staging_bytes_));
    uint8_t *staged = staging_.at();
    for (const Piece &piece : pieces) {
        copy_async(staged, reinterpret_cast<const void *>(piece.from), piece.bytes, ACL_MEMCPY_DEVICE_TO_HOST, stream_);
        staged += piece.bytes;
    }
    synchronise(stream_);
    staged = staging_.at();
    for (const Piece &piece : pieces) {
        if (piece.to != staged)
            memcpy(piece.to, staged, piece.bytes);
        staged += piece.bytes;
    }
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
    const BesideCaptures beside_captures;
    if (std::exchange(told_, true))
        return;
    TellArguments arguments = {};
    arguments.common = common();
    arguments.word = keep_status(word);
    arguments.value = value;
    arguments.region = region;
    put(launch_of(tell_kernel, 1, arguments), beside_stream_.get());
    synchronise(beside_stream_.get());
}

bool DeviceSession::reports_loss_of(uint32_t peer) {
    return dead_peer() == std::optional(peer) && !std::exchange(loss_reported_, true);
}

// On the watcher's thread.
void DeviceSession::note_ended(uint32_t peer) {
    const std::lock_guard lock(beside_);
    try {
        require(aclrtSetDevice(device_), "aclrtSetDevice");
        const BesideCaptures beside_captures;
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
