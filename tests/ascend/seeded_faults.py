"""The faults, and for each the test that has to notice it."""

from __future__ import annotations

from sglang_ascend_moe.native.codes import Step

from . import test_exchange, test_quantise, test_segments, test_waits
from .granted_faults import GRANTED_FAULTS
from .kernel_mutations import Mutation
from .timed_faults import TIMED_FAULTS

SPLIT = test_exchange.test_any_division_over_cores_gives_the_same_bits
BITS = test_exchange.test_kernels_equal_the_reference_to_the_bit
INT8 = test_quantise.test_int8_rows_and_scales_are_those_of_the_host_kernels
HANDLES = test_exchange.test_two_live_handles_are_combined_in_any_order
LEAVES = test_waits.test_a_rank_that_fails_at_a_step_is_named
VAIN = test_waits.test_a_rank_that_is_waited_for_in_vain_is_named


def split(name: str) -> dict[str, object]:
    return {"ranks": 2, "cores": 8, "scenario": test_exchange.SPLITS[name]}


def bits(name: str) -> dict[str, object]:
    return {"ranks": 2, "cores": 8, "scenario": test_exchange.SCENARIOS[name]}


def int8(name: str) -> dict[str, object]:
    return {"ranks": 2, "cores": 8, "scenario": test_quantise.CASES[name]}


ALL_CORES = split("one-expert-filled-by-all-cores")
SHARED = split("rows-that-cores-share")
MANY_PAIRS = split("more-pairs-than-a-piece")

FREE_TERM = "            loads_.FreeTensor(row);\n"
COMBINE_TERM = f"""            if constexpr (sizeof(Element) == sizeof(float)) {{
                Muls(products, row, weight, elements);
            }} else {{
                Cast(products, row, RoundMode::CAST_NONE, count);
                PipeBarrier<PIPE_V>();
                Muls(products, products, weight, elements);
            }}
{FREE_TERM}"""

MUTATIONS = [
    # Barriers, events and the order of stores.
    Mutation(
        "cores-not-joined-before-arrive",
        "dispatch.cpp",
        "before a word says so.\n        SyncAll<true>();",
        "before a word says so.\n        PipeBarrier<PIPE_ALL>();",
        SPLIT,
        ALL_CORES,
    ),
    Mutation(
        "arrive-before-rows",
        "dispatch.cpp",
        "            PlaceRows();\n            found = grants_.Misplaced();\n        }\n"
        "        const Verdict verdict = MeetAtArrivals(found);",
        "        }\n        const Verdict verdict = MeetAtArrivals(found);\n        PlaceRows();",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "cores-not-joined-after-histograms",
        "dispatch.cpp",
        "SyncAll<true>();\n\n        const Verdict input",
        "PipeBarrier<PIPE_ALL>();\n\n        const Verdict input",
        SPLIT,
        ALL_CORES,
    ),
    Mutation(
        "core-0-waits-for-no-other",
        "combine.cpp",
        "control_.Conclude(control_.WaitForEnds(stamp, found));",
        "control_.Conclude(found);",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "a-core-ends-before-its-sums",
        "combine.cpp",
        "            found = Reduce();\n",
        "        {\n            End(found);\n            found = Reduce();\n        }\n",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "a-core-ends-while-its-rows-are-under-way",
        "control.h",
        "        PipeBarrier<PIPE_ALL>();\n        Store(Global<uint64_t>(arguments_->ends",
        "        Store(Global<uint64_t>(arguments_->ends",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "a-core-ends-before-it-tells-its-fault",
        "control.h",
        "        if (found.result != EXCHANGE_OK)\n            StoreVerdict(0, found);\n        FillUnit(",
        "        FillUnit(",
        LEAVES,
        {"cores": 4, "step": Step.DONE},
    ),
    Mutation(
        "ends-of-the-launch-before",
        "combine.cpp",
        "stamp = SequenceWord(control_.epoch, rendezvous_);",
        "stamp = SequenceWord(control_.epoch, rendezvous_ - 1);",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "a-core-leaves-before-the-barrier",
        "dispatch.cpp",
        "before a word says so.\n        SyncAll<true>();",
        "before a word says so.\n        if (control_.core() != 1)\n            SyncAll<true>();",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "a-core-ends-without-a-word",
        "combine.cpp",
        "            control_.StoreEnd(stamp, found);",
        "            if (control_.core() != 1)\n                control_.StoreEnd(stamp, found);",
        VAIN,
        {"cores": 4, "step": Step.DONE},
    ),
    Mutation(
        "ids-used-on-the-wrong-event",
        "routing.h",
        "Order<HardEvent::MTE2_S>();",
        "Order<HardEvent::MTE2_V>();",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "product-without-vector-barrier",
        "combine.cpp",
        "            PipeBarrier<PIPE_V>();\n            Add(",
        "            Add(",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "buffer-freed-before-it-is-used",
        "combine.cpp",
        COMBINE_TERM,
        COMBINE_TERM.replace(FREE_TERM, "").replace("            if constexpr", f"{FREE_TERM}            if constexpr"),
        BITS,
        bits("top8"),
    ),
    Mutation("buffer-never-freed", "rows.h", "            rows_.FreeTensor(tile);\n", "", BITS, bits("top4")),
    Mutation(
        "positions-overwritten-while-stored",
        "dispatch.cpp",
        "        Order<HardEvent::MTE3_S>();\n",
        "",
        SPLIT,
        split("more-pairs-than-a-piece") | {"cores": 1},
    ),
    Mutation(
        "scalar-positions-stored-at-once",
        "dispatch.cpp",
        "        Order<HardEvent::S_MTE3>();\n",
        "",
        BITS,
        bits("top4"),
    ),
    # Division of the work.
    Mutation(
        "share-begins-late",
        "order.h",
        "return {total * core / cores,",
        "return {(total * core + cores - 1) / cores,",
        SPLIT,
        SHARED,
    ),
    Mutation(
        "shares-overlap",
        "order.h",
        "total * (core + 1) / cores}",
        "total * (core + 1) / cores + (core + 1 < cores ? 1 : 0)}",
        SPLIT,
        SHARED,
    ),
    Mutation(
        "earlier-cores-forgotten",
        "own_pairs.h",
        "Adds(own_.Get<int32_t>(), sums, 0, count);",
        "Duplicate(own_.Get<int32_t>(), 0, count);",
        SPLIT,
        MANY_PAIRS,
    ),
    Mutation(
        "earlier-pairs-not-compared",
        "own_pairs.h",
        "GetValue(local), local);",
        "GetValue(local), Most(1u, local / 2));",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "experts-of-a-unit-mixed-up",
        "own_pairs.h",
        "static_cast<float>(first + i), pairs_",
        "static_cast<float>(first + 1 - i % 2), pairs_",
        BITS,
        bits("top4"),
    ),
    Mutation("earlier-ranks-forgotten", "counts.h", "Number(before_, expert) + index", "index", BITS, bits("top4")),
    Mutation(
        "rows-of-earlier-experts-forgotten",
        "counts.h",
        "SumBefore(expert) - start +",
        "SumBefore(expert / 2 * 2) - start +",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "rows-of-earlier-units-forgotten",
        "counts.h",
        "for (uint32_t step = 1; step < units_; step *= 2)",
        "for (uint32_t step = 2; step < units_; step *= 2)",
        SPLIT,
        split("experts-that-fill-no-count-unit"),
    ),
    Mutation(
        "an-arrive-word-left-out",
        "dispatch.cpp",
        "EXCHANGE_LINE_BYTES, control_.core(), control_.cores(), word);",
        "EXCHANGE_LINE_BYTES, 2 * control_.core(), control_.cores(), word);",
        BITS,
        bits("top4") | {"ranks": 4, "cores": 2},
    ),
    Mutation(
        "last-tile-missed",
        "rows.h",
        "begin < end; begin",
        "begin + tile_bytes <= end; begin",
        SPLIT,
        split("rows-longer-than-a-tile") | {"cores": 1},
    ),
    Mutation(
        "copy-rounded-down",
        "rows.h",
        "Store(Global<int8_t>(Row(position) + tile.begin), tile.values, tile.count);",
        "DataCopy(Global<int8_t>(Row(position) + tile.begin), tile.values, tile.count);",
        INT8,
        int8("rows-of-a-quarter-line"),
    ),
    Mutation(
        "counts-of-the-last-unit-missed",
        "counts.h",
        "if (rest > 0)",
        "if (rest > 9)",
        test_exchange.test_every_rank_is_told_how_many_rows_of_each_come_from_where,
        {"ranks": 2, "cores": 8, "name": "experts-that-fill-no-count-unit"},
    ),
    Mutation(
        "segments-not-used",
        "order.h",
        "if (segments != 0)",
        "if (segments == 1)",
        test_segments.test_segments_of_prefill_move_equally_many_bytes,
        {"routing": "second-half-unrouted"},
    ),
    Mutation(
        "segment-ends-early",
        "order.h",
        "GetValue(core + 1)}",
        "GetValue(core + 1) - core % 2}",
        test_segments.test_segments_of_prefill_move_equally_many_bytes,
        {"routing": "even"},
    ),
    Mutation(
        "row-of-a-shared-token-counted-twice",
        "dispatch.cpp",
        "pairs_.Return(static_cast<uint32_t>(id));",
        "continue;",
        SPLIT,
        SHARED,
    ),
    Mutation(
        "positions-stored-by-two-cores",
        "dispatch.cpp",
        "        if (!piece.is_counted)\n            return;\n",
        "",
        SPLIT,
        SHARED,
    ),
    Mutation(
        "part-placed-where-the-row-begins",
        "rows.h",
        "Store(Global<uint8_t>(Row(position) + begin), tile, bytes);",
        "Store(Global<uint8_t>(Row(position)), tile, bytes);",
        SPLIT,
        SHARED,
    ),
    # Sums and values.
    Mutation(
        "wrong-k-order",
        "combine.cpp",
        "GetValue(term);\n            if (position < 0)\n                continue;\n            const float weight",
        "GetValue(2 * first_term + topk_ - 1 - term);\n            if (position < 0)\n                continue;\n"
        "            const float weight",
        BITS,
        bits("top8"),
    ),
    Mutation(
        "weight-of-another-k",
        "combine.cpp",
        "weights_.Get<float>().GetValue(term)",
        "weights_.Get<float>().GetValue(first_term)",
        BITS,
        bits("top4"),
    ),
    Mutation("sums-not-cleared", "combine.cpp", "        Duplicate(sums, 0.0f, elements);\n", "", BITS, bits("top4")),
    Mutation(
        "sum-truncated",
        "combine.cpp",
        "Cast(result, sums, RoundMode::CAST_RINT, count);",
        "Cast(result, sums, RoundMode::CAST_TRUNC, count);",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "unrouted-term-read",
        "combine.cpp",
        "if (position < 0)\n                continue;\n            const float",
        "if (position < -1)\n                continue;\n            const float",
        BITS,
        bits("minus-one-anywhere"),
    ),
    Mutation(
        "int8-rounded-towards-zero",
        "quantise.h",
        "Cast(whole, floats, RoundMode::CAST_RINT, count);",
        "Cast(whole, floats, RoundMode::CAST_TRUNC, count);",
        INT8,
        int8("normal"),
    ),
    Mutation(
        "scales-share-a-line",
        "rows.h",
        "Index(position) * EXCHANGE_LINE_BYTES",
        "Index(position) * sizeof(float)",
        INT8,
        int8("normal"),
    ),
    Mutation(
        "scale-stored-with-another-tile",
        "rows.h",
        "if (tile.begin == 0)",
        "if (tile.begin > 0)",
        INT8,
        int8("normal"),
    ),
    Mutation(
        "scales-packed-before-they-arrive",
        "dispatch.cpp",
        "        control_.BeginWait();\n",
        "        rows_.PackScales(part_.FirstRow(layout), total_);\n        control_.BeginWait();\n",
        INT8,
        int8("normal"),
    ),
    Mutation(
        "scales-packed-by-two-cores",
        "dispatch.cpp",
        "        if (control_.core() != 0)\n            return verdict;",
        "        if (control_.core() > 1)\n            return verdict;",
        INT8,
        int8("normal"),
    ),
    Mutation(
        "scales-overwritten-while-stored",
        "quantise.h",
        "            Order<HardEvent::MTE3_V>();\n",
        "",
        INT8,
        int8("rows-of-a-quarter-line"),
    ),
    Mutation(
        "lines-loaded-over-scales-that-are-packed",
        "quantise.h",
        "            Order<HardEvent::V_MTE2>();\n",
        "",
        INT8,
        int8("rows-of-a-quarter-line"),
    ),
    # Epochs, slots and the words of the protocol.
    Mutation(
        "epoch-not-advanced",
        "dispatch.cpp",
        "        ++control_.epoch;\n",
        "",
        test_exchange.test_calls_that_alternate_schedules,
        {"ranks": 2, "calls": 300},
    ),
    Mutation(
        "epoch-not-kept",
        "dispatch.cpp",
        "control_.epoch, dispatches_);\n        control_.Conclude",
        "control_.epoch - 1, dispatches_);\n        control_.Conclude",
        test_exchange.test_refusals_and_calls_in_any_order,
    ),
    Mutation("slot-not-taken", "dispatch.cpp", "slots_before_ + 1);", "slots_before_);", HANDLES),
    Mutation("rows-of-another-slot", "dispatch.cpp", "rows_.UseSlot(part_.slot);", "rows_.UseSlot(0);", HANDLES),
    Mutation(
        "half-of-the-window-forgotten",
        "counts.h",
        "part_.FirstRow(control_->layout())",
        "0",
        test_exchange.test_rounds_that_overlap_in_half_windows_give_the_same_bits,
        {"routing": "one-expert"},
    ),
    Mutation(
        "arrivals-not-waited-for",
        "dispatch.cpp",
        "{ return SeenOf(seen, word); }",
        "{ return seen <= word ? Seen::ready : SeenOf(seen, word); }",
        VAIN,
        {"cores": 1, "step": Step.ARRIVALS},
    ),
    Mutation(
        "done-not-waited-for",
        "combine.cpp",
        "return SeenOf(seen, word);",
        "return Seen::ready;",
        VAIN,
        {"cores": 1, "step": Step.DONE},
    ),
    Mutation(
        "counts-not-waited-for",
        "records.h",
        "            return false;\n        const uint32_t cores",
        "            (void)0;\n        const uint32_t cores",
        test_exchange.test_calls_that_alternate_schedules,
        {"ranks": 2, "calls": 300},
    ),
    Mutation(
        "deadline-dropped",
        "control.h",
        "if (expired_)",
        "if (expired_ && missing > 1)",
        VAIN,
        {"cores": 1, "step": Step.COUNTS},
    ),
    Mutation(
        "failed-peer-not-noticed",
        "control.h",
        "told = JudgeStatuses(); told.result",
        "told = Fault(0, 0); told.result",
        test_waits.test_a_rank_that_fails_while_it_is_waited_for_is_named,
    ),
    Mutation(
        "poisoned-session-used-again",
        "dispatch.cpp",
        "found = control_.RefusePoisoned();",
        "found.result = EXCHANGE_OK;",
        LEAVES,
        {"cores": 1, "step": Step.DONE},
    ),
    Mutation(
        "too-large-id-taken",
        "own_pairs.h",
        "id < -1 || id >= experts_",
        "id < -1",
        test_exchange.test_bad_input_on_one_rank_is_refused_on_every_rank,
        {"name": "id-past-the-end"},
    ),
    Mutation(
        "full-window-not-refused",
        "counts.h",
        "arriving > part.Capacity(control_->layout())",
        "arriving > 0xffffffff",
        test_exchange.test_rows_that_do_not_fit_the_window_are_refused_on_every_rank,
    ),
    # Events and barriers of what is counted, compared and told.
    Mutation(
        "units-pushed-before-they-are-filled",
        "counts.h",
        "pairs.CountRouted());\n        Order<HardEvent::S_MTE3>();\n",
        "pairs.CountRouted());\n",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "totals-stored-at-once",
        "counts.h",
        "            Order<HardEvent::S_MTE3>();\n            Store(Global<int64_t>(arguments_->counts",
        "            Store(Global<int64_t>(arguments_->counts",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "counts-read-while-pairs-are-compared",
        "own_pairs.h",
        "        if (is_compared_ && pairs_ > 0)\n            Order<HardEvent::V_S>();\n",
        "",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "counts-overwritten-while-they-are-read",
        "own_pairs.h",
        "        if (is_compared_ && pairs_ > 0)\n            Order<HardEvent::S_V>();\n",
        "",
        BITS,
        {**bits("top4"), "cores": 1},
    ),
    Mutation(
        "ids-compared-while-they-are-loaded",
        "own_pairs.h",
        "            Order<HardEvent::MTE2_V>();\n",
        "",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "sum-read-while-it-is-folded",
        "counts.h",
        "        Order<HardEvent::V_S>();\n        const uint64_t sum = ",
        "        const uint64_t sum = ",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "sums-added-to-while-they-are-copied",
        "own_pairs.h",
        "                Adds(own_.Get<int32_t>(), sums, 0, count);\n                PipeBarrier<PIPE_V>();\n",
        "                Adds(own_.Get<int32_t>(), sums, 0, count);\n",
        SPLIT,
        MANY_PAIRS,
        late=True,
    ),
    Mutation(
        "greatest-read-at-once",
        "quantise.h",
        "        Order<HardEvent::V_S>();\n        int32_t greatest = 0;",
        "        int32_t greatest = 0;",
        INT8,
        int8("normal"),
    ),
    Mutation(
        "word-refilled-while-it-is-stored",
        "control.h",
        "+ offset), unit_.Get<uint64_t>(), unit_words);\n        Order<HardEvent::MTE3_S>();\n",
        "+ offset), unit_.Get<uint64_t>(), unit_words);\n",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "terms-read-while-they-are-loaded",
        "combine.cpp",
        "        Order<HardEvent::MTE2_S>();\n",
        "",
        BITS,
        bits("top4"),
    ),
    # Halves of a slot, faults and deadlines.
    Mutation(
        "rows-in-the-other-half",
        "words.h",
        "return part == EXCHANGE_SECOND_HALF ? layout.capacity / 2 : 0;",
        "return part == EXCHANGE_SECOND_HALF ? layout.capacity / 4 : 0;",
        test_exchange.test_rounds_that_overlap_in_half_windows_give_the_same_bits,
        {"routing": "one-expert"},
    ),
    Mutation(
        "state-told-before-all-have-seen-it",
        "combine.cpp",
        "        control_.Conclude(",
        "        control_.StoreState(control_.PartState(part_), control_.epoch, rendezvous_);\n"
        "        control_.Conclude(",
        BITS,
        bits("top4"),
    ),
    Mutation(
        "verdict-of-the-first-core",
        "control.h",
        "if (Outweighs(Word(verdicts_, other), Word(verdicts_, worst)))",
        "if (other == 0)",
        test_exchange.test_bad_input_on_one_rank_is_refused_on_every_rank,
        {"name": "id-past-the-end"},
    ),
    Mutation(
        "deadline-of-another-rank",
        "control.h",
        "Fault(EXCHANGE_PEER_TIMEOUT, missing)",
        "Fault(EXCHANGE_PEER_TIMEOUT, rank())",
        VAIN,
        {"cores": 1, "step": Step.COUNTS},
    ),
    *GRANTED_FAULTS,
    *TIMED_FAULTS,
]
