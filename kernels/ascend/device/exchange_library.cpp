// The C ABI of exchange.h and exchange_device.h on an Ascend device. No NPU has run it; tests run it over a stand-in
// for CANN's runtime, with the kernels on the host model.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../../host/checksum.h"
#include "../../host/routing.h"
#include "../launch/limits.h"
#include "../words.h"
#include "device_session.h"

namespace {

using namespace ascend_kernels;
using ascend_device::DeviceSession;
using ascend_device::Piece;

std::mutex sessions_mutex;
// Never destroyed: when a process ends, CANN's runtime may be gone before this library.
auto &sessions = *new std::map<const ExchangeSession *, std::unique_ptr<DeviceSession>>;
// What a function that returns no result could not do: the next one that does reports it.
std::string unreported;

// With sessions_mutex held.
void report() {
    if (!unreported.empty())
        throw std::runtime_error(std::exchange(unreported, ""));
}

DeviceSession &device_of(const ExchangeSession &session) {
    const std::lock_guard lock(sessions_mutex);
    report();
    const auto found = sessions.find(&session);
    if (found == sessions.end())
        throw std::runtime_error("this exchange is not open on a device");
    return *found->second;
}

DeviceSession *find(const ExchangeSession *session) {
    const std::lock_guard lock(sessions_mutex);
    const auto found = sessions.find(session);
    return found == sessions.end() ? nullptr : found->second.get();
}

uint64_t status_word(const ExchangeFault &fault) {
    Verdict verdict = {};
    verdict.result = fault.result;
    verdict.culprit = fault.culprit;
    verdict.step = fault.step;
    verdict.epoch = fault.epoch;
    return StatusWord(verdict);
}

// The one exchange with this very layout: NativeSession owns one.
DeviceSession &device_of_layout(const ExchangeLayout *layout) {
    const std::lock_guard lock(sessions_mutex);
    for (const auto &[session, device] : sessions)
        if (session->layout == layout)
            return *device;
    throw std::runtime_error("this exchange is not open on a device");
}

// A fault that the host found: told to every rank where it ends the session.
int fail(ExchangeSession &session, DeviceSession &device, uint32_t result, uint32_t culprit, int64_t detail = 0) {
    session.fault = {result, culprit, session.step, 0, session.epoch, detail, EXCHANGE_REGION_NONE, 0};
    if (Poisons(result))
        device.tell(status_word(session.fault));
    return static_cast<int>(result);
}

int fail_corrupt(ExchangeSession &session, DeviceSession &device, uint32_t region, uint32_t source, uint64_t value) {
    session.fault = {
        EXCHANGE_CORRUPTION, source, session.step, 0, session.epoch, static_cast<int64_t>(value), region, 0};
    device.tell(status_word(session.fault), value, region);
    return EXCHANGE_CORRUPTION;
}

using Header = std::array<uint64_t, EXCHANGE_UNIT_BYTES / sizeof(uint64_t)>;

// Where the header unit of `source` in the exchange of this rank's epoch lies.
uint64_t header_at(const ExchangeSession &session, const DeviceSession &device, uint32_t source) {
    const ExchangeLayout &layout = *session.layout;
    const uint64_t record = ((session.epoch & 1) * layout.ranks + source) * (1 + layout.count_units);
    return device.own(layout.records + record * EXCHANGE_UNIT_BYTES);
}

// What `source` has put into its mailbox, of the length and checksum that its header says.
int check_block(ExchangeSession &session, DeviceSession &device, uint32_t source, const uint8_t *block,
                uint64_t announced) {
    const uint32_t check = ascend_moe::block_checksum(block, static_cast<uint32_t>(announced));
    if (check == announced >> 32)
        return EXCHANGE_OK;
    return fail_corrupt(session, device, EXCHANGE_REGION_MAILBOXES, source, check);
}

// Keeps the text with which `source` refused its arguments.
int fetch_refusal(ExchangeSession &session, DeviceSession &device, uint32_t source) {
    const ExchangeLayout &layout = *session.layout;
    Header header;
    device.fetch(header.data(), header_at(session, device, source), sizeof header);
    const uint64_t announced = header[header_block];
    const uint64_t box = (session.epoch & 1) * layout.ranks + source;
    memset(session.refusal, 0, sizeof session.refusal);
    if (static_cast<uint32_t>(announced) > EXCHANGE_REFUSAL_BYTES)
        return fail_corrupt(session, device, EXCHANGE_REGION_RECORDS, source, static_cast<uint32_t>(announced));
    device.fetch(session.refusal, device.own(layout.mailboxes + box * layout.mailbox_bytes),
                 static_cast<uint32_t>(announced));
    return check_block(session, device, source, session.refusal, announced);
}

// What the runtime refused, as a fault of this rank; the other ranks are told if the device still takes a word.
int fail_by_runtime(ExchangeSession &session, const std::exception &error) {
    session.fault = {EXCHANGE_PEER_FAILED, session.rank, session.step, EXCHANGE_CAUSE_RUNTIME, session.epoch, 0, 0, 0};
    memset(session.refusal, 0, sizeof session.refusal);
    memcpy(session.refusal, error.what(), std::min<size_t>(strlen(error.what()), sizeof session.refusal));
    if (DeviceSession *device = find(&session); device != nullptr)
        try {
            device->tell(status_word(session.fault));
        } catch (const std::exception &) {
            // A device that takes no word: the others find out at their deadline, or by the end of this process.
        }
    return EXCHANGE_PEER_FAILED;
}

template <class Call> void keep_failure(Call call) {
    try {
        call();
    } catch (const std::exception &error) {
        const std::lock_guard lock(sessions_mutex);
        unreported = error.what();
    }
}

template <class Call> int guarded(ExchangeSession *session, Call call) {
    try {
        return call(device_of(*session));
    } catch (const std::exception &error) {
        return fail_by_runtime(*session, error);
    }
}

int begin_step(ExchangeSession &session, DeviceSession &device, uint32_t step) {
    session.step = step;
    if (session.on_step != nullptr && session.on_step(session.watcher, step) != 0)
        return fail(session, device, EXCHANGE_PEER_FAILED, session.rank);
    if (const auto dead = device.dead_peer(); dead && device.reports_loss_of(*dead))
        return fail(session, device, EXCHANGE_PEER_LOST, *dead);
    return EXCHANGE_OK;
}

int conclude(ExchangeSession &session, DeviceSession &device, const Verdict &verdict) {
    const ExchangeLayout &layout = *session.layout;
    session.epoch = verdict.epoch;
    session.step = verdict.step;
    for (uint32_t rank = 0; rank < layout.ranks; ++rank)
        session.missing[rank] = verdict.result == EXCHANGE_PEER_TIMEOUT && rank == verdict.culprit;
    if (verdict.result == EXCHANGE_OK)
        return EXCHANGE_OK;
    // A launch that began after a peer's death found the session poisoned, by the word of the watcher.
    const bool lost = verdict.result == EXCHANGE_PEER_LOST ||
                      (verdict.result == EXCHANGE_POISONED && verdict.cause == EXCHANGE_PEER_LOST);
    if (lost && device.reports_loss_of(verdict.culprit))
        return fail(session, device, EXCHANGE_PEER_LOST, verdict.culprit);
    session.fault = {verdict.result, verdict.culprit, verdict.step,   verdict.cause,
                     verdict.epoch,  verdict.detail,  verdict.region, 0};
    if (verdict.result == EXCHANGE_INVALID_INPUT && verdict.cause == EXCHANGE_INPUT_ARGUMENT)
        if (const int result = fetch_refusal(session, device, verdict.culprit); result != EXCHANGE_OK)
            return result;
    return static_cast<int>(verdict.result);
}

int announce(ExchangeSession &session, DeviceSession &device, uint32_t kind, const uint8_t *block, uint32_t bytes,
             uint32_t tokens, uint32_t error, int64_t detail) {
    if (const int result = begin_step(session, device, EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    return conclude(session, device, device.announce(kind, block, bytes, tokens, error, detail));
}

int refuse_as(ExchangeSession *session, uint32_t kind, const char *text) {
    return exchange_refuse(session, kind, reinterpret_cast<const uint8_t *>(text), static_cast<uint32_t>(strlen(text)));
}

int combine(ExchangeSession *session, const ExchangeCombine *call, bool only_meet) {
    return guarded(session, [=](DeviceSession &device) {
        if (device.defers()) {
            ascend_device::put(device.ready_combine(*call, only_meet), device.stream());
            return static_cast<int>(EXCHANGE_OK);
        }
        session->epoch = call->epoch;
        const uint32_t step = only_meet ? EXCHANGE_STEP_REJOIN : EXCHANGE_STEP_DONE;
        if (const int result = begin_step(*session, device, step); result != EXCHANGE_OK)
            return result;
        const int result = conclude(*session, device, device.combine(*call, only_meet));
        return result != EXCHANGE_OK || only_meet ? result : begin_step(*session, device, EXCHANGE_STEP_REDUCE);
    });
}

int fetch_blocks(ExchangeSession &session, DeviceSession &device, ExchangePlan &call) {
    const ExchangeLayout &layout = *session.layout;
    const uint64_t first = (session.epoch & 1) * layout.ranks;
    std::vector<Header> headers(layout.ranks);
    std::vector<Piece> pieces;
    for (uint32_t source = 0; source < layout.ranks; ++source)
        pieces.push_back({headers[source].data(), header_at(session, device, source), sizeof(Header)});
    device.fetch(pieces);
    pieces.clear();
    const auto block_of = [&](uint32_t source) { return call.blocks + source * layout.mailbox_bytes; };
    for (uint32_t source = 0; source < layout.ranks; ++source) {
        call.lengths[source] = static_cast<uint32_t>(headers[source][header_block]);
        if (call.lengths[source] > layout.mailbox_bytes)
            return fail_corrupt(session, device, EXCHANGE_REGION_RECORDS, source, call.lengths[source]);
        const uint64_t box = device.own(layout.mailboxes + (first + source) * layout.mailbox_bytes);
        if (call.lengths[source] > 0)
            pieces.push_back({block_of(source), box, call.lengths[source]});
    }
    device.fetch(pieces);
    for (uint32_t source = 0; source < layout.ranks; ++source) {
        const int result = check_block(session, device, source, block_of(source), headers[source][header_block]);
        if (result != EXCHANGE_OK)
            return result;
    }
    return EXCHANGE_OK;
}

// What was found of replays, which have begun exchanges that no call has; a combine, which ends them, ends with its
// sums.
int conclude_replays(ExchangeSession &session, DeviceSession &device, const Verdict &found) {
    if (found.result != EXCHANGE_OK)
        return conclude(session, device, found);
    if (found.epoch > session.epoch) {
        session.epoch = found.epoch;
        session.step = EXCHANGE_STEP_REDUCE;
    }
    return EXCHANGE_OK;
}

} // namespace

uint32_t exchange_abi_version() { return EXCHANGE_ABI_VERSION; }

int32_t exchange_select_kernels(const char *name) { return name == nullptr || strcmp(name, "ascend") == 0 ? 0 : -1; }

const char *exchange_selected_kernels() { return "ascend"; }

void exchange_initialise(const ExchangeLayout *layout, void *window, uint64_t first_epoch) {
    // Control words come first in a window; rows and results may hold anything.
    keep_failure([=] {
        ascend_device::require(aclrtMemset(window, layout->rows, 0, layout->rows), "aclrtMemset");
        constexpr uint64_t line_words = EXCHANGE_LINE_BYTES / sizeof(uint64_t);
        std::vector<uint64_t> state((1 + 2 * layout->slots) * line_words);
        for (uint64_t line = 0; line < state.size(); line += line_words)
            state[line + 2] = window_words::state_seal(0, 0);
        state[0] = first_epoch;
        state[2] = window_words::state_seal(first_epoch, 0);
        const uint64_t bytes = state.size() * sizeof(uint64_t);
        ascend_device::require(aclrtMemcpy(static_cast<uint8_t *>(window) + layout->state, bytes, state.data(), bytes,
                                           ACL_MEMCPY_HOST_TO_DEVICE),
                               "aclrtMemcpy");
    });
}

const char *exchange_refuse_layout(const ExchangeLayout *layout) {
    static thread_local char text[EXCHANGE_REFUSAL_BYTES];
    const char *refusal = nullptr;
    keep_failure([&] {
        const uint32_t cores = ascend_device::vector_cores(ascend_device::current_device());
        refusal = RefuseLayout(*layout, cores, text, sizeof text);
    });
    return refusal;
}

int exchange_dispatch(ExchangeSession *session, ExchangeDispatch *call) {
    const ExchangeLayout &layout = *session->layout;
    if (call->row_bytes > 0)
        return refuse_as(session, call->kind, "the Ascend kernels place whole rows without gaps; use layout='compact'");
    if (call->weights != nullptr)
        return refuse_as(session, call->kind, "the Ascend kernels keep no weights; copy them before the dispatch");
    return guarded(session, [=, &layout](DeviceSession &device) {
        if (device.defers()) {
            ascend_device::put(device.ready_dispatch(*call, 0), device.stream());
            call->slot = 0;
            call->epoch = call->first_row = call->total = 0;
            return static_cast<int>(EXCHANGE_OK);
        }
        if (const int result = begin_step(*session, device, EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
            return result;
        const Verdict verdict = device.dispatch(*call);
        call->epoch = verdict.epoch;
        call->slot = verdict.slot;
        call->first_row = Part{verdict.slot, call->part}.FirstRow(layout);
        call->total = verdict.total;
        if (const int result = conclude(*session, device, verdict); result != EXCHANGE_OK)
            return result;
        return begin_step(*session, device, EXCHANGE_STEP_EXPERTS);
    });
}

int exchange_combine(ExchangeSession *session, const ExchangeCombine *call) { return combine(session, call, false); }

// A launch is not divided: rows move in the first part of a dispatch, and all of combine is in the second.
int exchange_dispatch_send(ExchangeSession *session, ExchangeDispatch *call) {
    return exchange_dispatch(session, call);
}
int exchange_dispatch_receive(ExchangeSession *, const ExchangeDispatch *) { return EXCHANGE_OK; }
int exchange_combine_send(ExchangeSession *, const ExchangeCombine *) { return EXCHANGE_OK; }
int exchange_combine_receive(ExchangeSession *session, const ExchangeCombine *call) {
    return combine(session, call, false);
}

int exchange_rejoin(ExchangeSession *session, const ExchangeCombine *call) { return combine(session, call, true); }

int exchange_plan(ExchangeSession *session, ExchangePlan *call) {
    return guarded(session, [=](DeviceSession &device) {
        const int result = announce(*session, device, EXCHANGE_PLAN, call->block, call->block_bytes, call->tokens,
                                    call->input_error, call->detail);
        return result != EXCHANGE_OK ? result : fetch_blocks(*session, device, *call);
    });
}

int exchange_refuse(ExchangeSession *session, uint32_t kind, const uint8_t *text, uint32_t text_bytes) {
    return guarded(session, [=](DeviceSession &device) {
        return announce(*session, device, kind, text, text_bytes, 0, EXCHANGE_INPUT_ARGUMENT, text_bytes);
    });
}

void exchange_leave(const ExchangeSession *session, uint32_t result, uint32_t step, uint64_t epoch) {
    DeviceSession *device = find(session);
    if (device == nullptr)
        return;
    try {
        device->tell(status_word({result, session->rank, step, 0, epoch, 0, 0, 0}));
    } catch (const std::exception &) {
        // As in fail_by_runtime.
    }
}

uint32_t exchange_count_chunks(const ExchangeLayout *layout, const void *ids, uint32_t ids_bytes, uint32_t tokens,
                               uint32_t chunk_tokens, uint32_t *rows, int64_t *detail) {
    std::vector<uint8_t> copy(uint64_t{std::min(tokens, layout->max_tokens)} * layout->topk * ids_bytes, 0xff);
    keep_failure([&] { device_of_layout(layout).fetch(copy.data(), reinterpret_cast<uint64_t>(ids), copy.size()); });
    return ascend_moe::count_chunks(*layout, {copy.data(), ids_bytes}, tokens, chunk_tokens, rows, *detail);
}

uint32_t exchange_device_abi_version() { return EXCHANGE_DEVICE_ABI_VERSION; }

int exchange_device_open(ExchangeSession *session, uint32_t cores) {
    try {
        const std::lock_guard lock(sessions_mutex);
        report();
        sessions[session] = std::make_unique<DeviceSession>(*session, cores);
        return EXCHANGE_OK;
    } catch (const std::exception &error) {
        return fail_by_runtime(*session, error);
    }
}

void exchange_device_close(ExchangeSession *session) {
    std::unique_ptr<DeviceSession> device;
    const std::lock_guard lock(sessions_mutex);
    if (const auto found = sessions.find(session); found != sessions.end()) {
        device = std::move(found->second);
        sessions.erase(found);
    }
}

void exchange_device_use_stream(ExchangeSession *session, void *stream, uint32_t deferred) {
    keep_failure([=] { device_of(*session).use_stream(stream, deferred != 0); });
}

int exchange_device_ready_dispatch(ExchangeSession *session, const ExchangeDispatch *call, uint64_t most_rows,
                                   ExchangeLaunch *launch) {
    return guarded(session, [=](DeviceSession &device) {
        *launch = device.ready_dispatch(*call, most_rows);
        return static_cast<int>(EXCHANGE_OK);
    });
}

int exchange_device_ready_combine(ExchangeSession *session, const ExchangeCombine *call, ExchangeLaunch *launch) {
    return guarded(session, [=](DeviceSession &device) {
        *launch = device.ready_combine(*call, false);
        return static_cast<int>(EXCHANGE_OK);
    });
}

int exchange_device_launch(const ExchangeLaunch *launch, void *stream) {
    ascend_device::put(*launch, stream);
    return 0;
}

int exchange_device_capturing(void *stream) {
    bool capturing = false;
    keep_failure([&] { capturing = ascend_device::is_captured(stream); });
    return capturing;
}

int exchange_device_check(ExchangeSession *session) {
    return guarded(session, [=](DeviceSession &device) { return conclude_replays(*session, device, device.check()); });
}

int exchange_device_fetch(ExchangeSession *session, void *stream, uint32_t place) {
    // Held until the copy is on the stream, which an ending session waits for.
    const std::lock_guard lock(sessions_mutex);
    const auto found = sessions.find(session);
    if (found == sessions.end())
        return 0;
    try {
        found->second->fetch_verdicts(stream, place);
        return 0;
    } catch (const ascend_device::RuntimeRefused &refused) {
        return refused.code;
    }
}

int exchange_device_fetched(ExchangeSession *session, uint32_t place) {
    return guarded(session,
                   [=](DeviceSession &device) { return conclude_replays(*session, device, device.fetched(place)); });
}

int exchange_device_trace(ExchangeSession *session, ExchangeTrace *trace) {
    return guarded(session, [=](DeviceSession &device) {
        device.trace(trace);
        return static_cast<int>(EXCHANGE_OK);
    });
}

void exchange_device_forget(ExchangeSession *session) {
    keep_failure([=] { device_of(*session).forget_fault(); });
}
