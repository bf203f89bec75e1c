// Exchanges that place no rows, on one core: mailbox and header to every window, then the headers of all. No NPU has
// run these kernels; they were executed on host_model only.
#include "announce.h"

#include "../control.h"
#include "../kernels.h"

namespace ascend_kernels {
namespace {

constexpr uint32_t block_tile_bytes = 4096;

class Announce {
  public:
    __aicore__ inline void Run(TPipe &pipe, const AnnounceArguments &arguments) {
        arguments_ = arguments;
        control_.Init(pipe, arguments_.common);
        pipe.InitBuffer(header_, EXCHANGE_UNIT_BYTES);
        pipe.InitBuffer(tile_, block_tile_bytes);
        control_.Conclude(Meet());
    }

  private:
    __aicore__ inline Verdict Meet() {
        const ExchangeLayout &layout = control_.layout();
        uint64_t dispatches;
        const bool is_sealed = control_.LoadState(control_.Own(layout.state), control_.epoch, dispatches);
        control_.BeginStep(EXCHANGE_STEP_ANNOUNCE);
        if (control_.IsTimed())
            control_.Times().kind = arguments_.kind;
        if (const Verdict refused = control_.RefusePoisoned(); refused.result != EXCHANGE_OK)
            return refused;
        if (!is_sealed)
            return control_.Corruption(EXCHANGE_REGION_STATE, control_.rank(), control_.epoch);
        ++control_.epoch;
        // @protocol advance-epoch
        control_.StoreState(control_.Own(layout.state), control_.epoch, dispatches);
        PostMailboxes();
        PushHeaders();
        control_.BeginStep(EXCHANGE_STEP_COUNTS);
        return WaitForHeaders();
    }

    __aicore__ inline void PostMailboxes() {
        const ExchangeLayout &layout = control_.layout();
        const uint64_t mailbox = ((control_.epoch & 1) * layout.ranks + control_.rank()) * layout.mailbox_bytes;
        const auto tile = tile_.Get<uint8_t>();
        for (uint32_t begin = 0; begin < arguments_.block_bytes; begin += block_tile_bytes) {
            const uint32_t bytes = Least(arguments_.block_bytes - begin, block_tile_bytes);
            Order<HardEvent::MTE3_MTE2>();
            Load(tile, Global<uint8_t>(arguments_.block + begin), bytes);
            Order<HardEvent::MTE2_MTE3>();
            for (uint32_t peer = 0; peer < layout.ranks; ++peer)
                // @protocol post-mailbox
                // @protocol mailbox-parity
                Store(Global<uint8_t>(control_.Window(peer) + layout.mailboxes + mailbox + begin), tile, bytes);
        }
        // The mailboxes are visible before a header says that they are.
        PipeBarrier<PIPE_ALL>();
    }

    __aicore__ inline void PushHeaders() {
        const auto words = header_.Get<uint64_t>();
        const auto halves = header_.Get<uint32_t>();
        words.SetValue(0, SequenceWord(control_.epoch, arguments_.kind));
        halves.SetValue(2 * header_tokens_error, arguments_.tokens);
        halves.SetValue(2 * header_tokens_error + 1, arguments_.error);
        words.SetValue(header_detail, static_cast<uint64_t>(arguments_.detail));
        words.SetValue(header_block, uint64_t(arguments_.block_check) << 32 | arguments_.block_bytes);
        Order<HardEvent::S_MTE3>();
        for (uint32_t peer = 0; peer < control_.ranks(); ++peer)
            // @protocol push-header. Stored whole, after the barrier behind the mailboxes.
            Store(Global<uint64_t>(control_.Window(peer) + Header(control_.rank())), words, unit_words);
        Order<HardEvent::MTE3_S>();
    }

    // Every header is waited for before any is judged, so that all ranks come to the same decision.
    __aicore__ inline Verdict WaitForHeaders() {
        Verdict mismatch = control_.Fault(EXCHANGE_OK, 0), refused = mismatch;
        control_.BeginWait();
        for (uint32_t source = 0; source < control_.ranks(); ++source) {
            const Verdict verdict = WaitForHeader(source);
            if (Poisons(verdict.result))
                return verdict;
            if (verdict.result == EXCHANGE_MISMATCH && mismatch.result == EXCHANGE_OK)
                mismatch = verdict;
            if (verdict.result == EXCHANGE_INVALID_INPUT && refused.result == EXCHANGE_OK)
                refused = verdict;
        }
        control_.EndWait();
        return mismatch.result != EXCHANGE_OK ? mismatch : refused;
    }
    __aicore__ inline Verdict WaitForHeader(uint32_t source) {
        const auto words = header_.Get<uint64_t>();
        for (;;) {
            control_.LookAround();
            Order<HardEvent::S_MTE2>();
            Load(words, Global<uint64_t>(control_.Own(Header(source))), unit_words);
            Order<HardEvent::MTE2_S>();
            // @protocol wait-headers. The unit was loaded whole: with the word its payload is there.
            const uint64_t seen = EpochOf(words.GetValue(0));
            if (seen > control_.epoch)
                return control_.Corruption(EXCHANGE_REGION_RECORDS, source, words.GetValue(0));
            if (seen == control_.epoch)
                return Judge(source);
            if (const Verdict verdict = control_.JudgeDelay(source); verdict.result != EXCHANGE_OK)
                return verdict;
        }
    }
    __aicore__ inline Verdict Judge(uint32_t source) {
        const window_words::Header header = HeaderOf(header_.Get<uint64_t>());
        uint64_t value;
        if (!window_words::header_is_possible(control_.layout(), header, value))
            return control_.Corruption(EXCHANGE_REGION_RECORDS, source, value);
        // @protocol check-kind
        if (header.kind != arguments_.kind)
            return control_.Fault(EXCHANGE_MISMATCH, source, header.kind, arguments_.kind);
        // @protocol check-error
        if (header.error != EXCHANGE_INPUT_OK)
            return control_.Fault(EXCHANGE_INVALID_INPUT, source, header.error, header.detail);
        return control_.Fault(EXCHANGE_OK, 0);
    }
    // Where the header of `source` lies in any window.
    __aicore__ inline uint64_t Header(uint32_t source) const {
        // @protocol record-parity
        const ExchangeLayout &layout = control_.layout();
        return layout.records +
               ((control_.epoch & 1) * layout.ranks + source) * (1 + layout.count_units) * EXCHANGE_UNIT_BYTES;
    }

    AnnounceArguments arguments_;
    Control control_;
    TBuf<TPosition::VECCALC> header_, tile_;
};

// Writes the status line of this rank in every window.
__aicore__ inline void Tell(TPipe &pipe, const TellArguments &arguments) {
    Control control;
    control.Init(pipe, arguments.common);
    // @protocol push-status
    control.PushWord(control.layout().status + control.rank() * EXCHANGE_LINE_BYTES, arguments.word, arguments.value,
                     arguments.region);
}

// What GetSystemCycle counts now, by which the host sets the clock of the device against its own.
__aicore__ inline void Stamp(TPipe &pipe, const StampArguments &arguments) {
    Control control;
    control.Init(pipe, arguments.common);
    control.StoreUnit(arguments.to, static_cast<uint64_t>(GetSystemCycle()));
}

} // namespace
} // namespace ascend_kernels

#ifndef ASCEND_KERNELS_HAVE_OTHER_ENTRIES
extern "C" __global__ __aicore__ void moe_announce(ascend_kernels::AnnounceArguments arguments) {
    AscendC::TPipe pipe;
    ascend_kernels::Announce announce;
    announce.Run(pipe, arguments);
}

extern "C" __global__ __aicore__ void moe_tell(ascend_kernels::TellArguments arguments) {
    AscendC::TPipe pipe;
    ascend_kernels::Tell(pipe, arguments);
}

extern "C" __global__ __aicore__ void moe_stamp(ascend_kernels::StampArguments arguments) {
    AscendC::TPipe pipe;
    ascend_kernels::Stamp(pipe, arguments);
}
#endif
