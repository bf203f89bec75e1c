"""Faults of kernels that grant places, and for each the test that has to notice it."""

from __future__ import annotations

from . import test_grants
from .kernel_mutations import Mutation

GRANTED = test_grants.test_any_division_over_cores_gives_the_same_bits


def split(name: str, cores: int = 8) -> dict[str, object]:
    return {"ranks": 2, "cores": cores, "scenario": test_grants.SPLITS[name]}


SHARED = split("rows-that-cores-share")

GRANTED_FAULTS = [
    Mutation(
        "records-for-each-rank-pushed-before-they-are-filled",
        "counts.h",
        "        Order<HardEvent::S_MTE3>();\n        for (uint32_t i = 0; i < served_.Number(); ++i) {",
        "        for (uint32_t i = 0; i < served_.Number(); ++i) {",
        GRANTED,
        split("fewer-pairs-than-cores"),
    ),
    Mutation(
        "counts-for-another-rank",
        "counts.h",
        "pairs.CountUnit(first + counted",
        "pairs.CountUnit(counted",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "counts-kept-before-they-are-added",
        "counts.h",
        "            PipeBarrier<PIPE_V>();\n            Adds(before_",
        "            Adds(before_",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "records-added-while-they-are-compared",
        "counts.h",
        "        Order<HardEvent::S_V>();\n        for (uint32_t source",
        "        for (uint32_t source",
        GRANTED,
        split("one-expert-filled-by-all-cores") | {"ranks": 4, "cores": 1},
    ),
    Mutation(
        "an-odd-record-forgotten",
        "counts.h",
        "first < number; first += count",
        "first + count <= number; first += count",
        test_grants.test_ranks_with_host_kernels_and_ranks_with_ascend_kernels_work_together,
        {"name": "top8"},
    ),
    Mutation(
        "begins-laid-out-while-they-are-cleared",
        "grants.h",
        "RecordLanes());\n        Order<HardEvent::V_S>();\n        const uint64_t first",
        "RecordLanes());\n        const uint64_t first",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "begins-added-while-they-are-laid-out",
        "grants.h",
        "        Order<HardEvent::S_V>();\n        PipeBarrier<PIPE_V>();\n",
        "        PipeBarrier<PIPE_V>();\n",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "rows-of-earlier-ranks-not-granted",
        "grants.h",
        "Add(lanes[i * RecordLanes()], lanes[i * RecordLanes()], begins_.Get<int32_t>(), RecordLanes());",
        "Adds(lanes[i * RecordLanes()], begins_.Get<int32_t>(), 0, RecordLanes());",
        GRANTED,
        split("one-expert-filled-by-all-cores"),
    ),
    Mutation(
        "grants-filled-while-they-are-added",
        "grants.h",
        "RecordLanes());\n        Order<HardEvent::V_S>();\n        const auto grants",
        "RecordLanes());\n        const auto grants",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "grants-pushed-before-they-are-filled",
        "grants.h",
        "        Order<HardEvent::S_MTE3>();\n        for",
        "        for",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "grants-for-another-rank",
        "grants.h",
        "grants[(peer - served.begin) * record_ * unit_words]",
        "grants[i * record_ * unit_words]",
        GRANTED,
        split("one-expert-filled-by-all-cores", cores=1),
    ),
    Mutation(
        "grants-not-waited-for",
        "grants.h",
        "records_->Wait(control_->layout().grants, 0, is_well, judge)",
        "control_->Fault(EXCHANGE_OK, 0)",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "half-of-the-window-not-granted",
        "grants.h",
        "const uint64_t first = part_.FirstRow(control_->layout());",
        "const uint64_t first = 0;",
        test_grants.test_rounds_that_overlap_in_half_windows_give_the_same_bits,
    ),
    Mutation(
        "totals-not-compared",
        "grants.h",
        "if (greatest <= capacity && ",
        "if (",
        test_grants.test_rows_that_do_not_fit_the_window_are_refused_on_every_rank,
    ),
    Mutation(
        "totals-read-while-they-are-compared",
        "grants.h",
        "        Order<HardEvent::V_S>();\n        const uint64_t greatest",
        "        const uint64_t greatest",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "totals-stored-while-they-are-loaded",
        "grants.h",
        "            Order<HardEvent::MTE2_MTE3>();\n",
        "",
        GRANTED,
        SHARED,
    ),
    Mutation(
        "granted-places-not-looked-at",
        "grants.h",
        "if (begin >= first && row < first + part_.Capacity(layout))",
        "if (row < (uint64_t(1) << 33))",
        test_grants.test_a_place_outside_the_window_is_named,
        {"cores": 1},
    ),
    Mutation(
        "sum-of-a-grant-not-looked-at",
        "grants.h",
        "total > most || total + records_->SumAt(i) != records_->At(i).GetValue(grant_sum)",
        "total > most",
        test_grants.test_a_grant_of_another_sum_is_named,
        {"cores": 1},
    ),
    Mutation(
        "a-header-judged-while-it-is-loaded",
        "records.h",
        "        Order<HardEvent::MTE2_S>();\n    }\n    // Of so many pieces",
        "    }\n    // Of so many pieces",
        GRANTED,
        SHARED,
    ),
]
