"""Low-latency calls against what DeepEP says of them: exact rows, counts and sums, whatever comes in between."""

from __future__ import annotations

import pytest
import torch

from sglang_ascend_moe.deep_ep import Buffer
from sglang_ascend_moe.native.codes import Step
from tests.exchange import reference
from tests.exchange.bits import require_same_bits, require_same_values
from tests.exchange.pool import Rank
from tests.exchange.reference import RankInput

from .low_latency_calls import (
    DISPATCHES,
    FP8,
    SCENARIO,
    STATISTICS_BEFORE,
    Case,
    Expected,
    Observed,
    cast_back,
    observe,
    open_buffer,
    packed,
    padded_as,
)
from .measures import difference

HOOKS = pytest.mark.parametrize("hooks", [False, True], ids=["at-once", "hooks"])


def require_rows(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        if expected.quantised is None:
            require_same_bits(seen.rows, expected.rows[rank].rows, f"rows of rank {rank}")
            continue
        values, scales = expected.quantised[rank]
        require_same_bits(seen.rows, values.view(torch.int16), f"values of rank {rank}")
        require_same_bits(seen.scales, scales, f"scales of rank {rank}")


def require_counts(observed: list[Observed], expected: Expected) -> None:
    for seen, wanted in zip(observed, expected.rows, strict=True):
        assert seen.counts.dtype is torch.int32
        assert seen.counts.tolist() == wanted.counts.tolist()


def require_statistics(observed: list[Observed], expected: Expected, hooks: bool) -> None:
    for seen, wanted in zip(observed, expected.rows, strict=True):
        each = wanted.counts
        assert seen.statistics.tolist() == (STATISTICS_BEFORE + DISPATCHES * each).tolist()
        if hooks:
            assert seen.statistics_before_hook.tolist() == (STATISTICS_BEFORE + (DISPATCHES - 1) * each).tolist()


def require_order(observed: list[Observed], expected: Expected) -> None:
    """Where the rows come from: source ranks one after the other in each expert, and in each the tokens."""
    for seen, wanted in zip(observed, expected.rows, strict=True):
        assert seen.source_tokens.tolist() == [token for _, token, _ in wanted.origins]
        sources = [source for source, _, _ in wanted.origins]
        found = []
        for expert, count in zip(seen.ranges, wanted.counts.tolist(), strict=True):
            of_expert = [-1] * count
            for source, packed_range in enumerate(expert.tolist()):
                begin, length = packed_range >> 32, packed_range & 0xFFFFFFFF
                of_expert[begin : begin + length] = [source] * length
            assert len(of_expert) == count
            found += of_expert
        assert found == sources


def require_sums(observed: list[Observed], expected: Expected) -> None:
    for name, wanted in (
        ("combined", expected.combined()),
        ("combined_again", expected.combined(2.0)),
        ("zero_copied", expected.combined(4.0)),
        ("without_first", expected.combined(without_first=True)),
    ):
        for rank, seen in enumerate(observed):
            require_same_values(getattr(seen, name), wanted[rank], f"{name} of rank {rank}")
    assert all(seen.out_was_returned for seen in observed)


def require_all(observed: list[Observed], expected: Expected, case: Case) -> None:
    require_rows(observed, expected)
    require_counts(observed, expected)
    require_statistics(observed, expected, case.hooks)
    require_order(observed, expected)
    require_sums(observed, expected)


@HOOKS
@pytest.mark.parametrize("fp8", FP8)
def test_rows_counts_order_statistics_and_sums_are_exact(pools, ranks, fp8, hooks):
    case = Case(fp8=fp8, hooks=hooks)
    require_all(pools.run(ranks, observe, case), Expected(case, ranks), case)


SHAPES = {
    "one-token": {"tokens": (1, 0)},
    "no-tokens": {"tokens": (0, 0)},
    "topk-1": {"topk": 1},
    "one-expert-per-rank": {"experts_per_rank": 1, "topk": 2},
    "int32-ids": {"id_dtype": "int32"},
    "room-to-spare": {"max_tokens": 29},
    "hidden-7168": {"hidden": 7168, "tokens": (3, 2)},
}


@pytest.mark.parametrize("fp8", ["bf16", "ue8m0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_a_call(pools, shape, fp8):
    case = Case(SCENARIO._replace(**SHAPES[shape]), fp8=fp8)
    require_all(pools.run(2, observe, case), Expected(case, 2), case)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hidden", [512, 1024, 2560, 4096, 5120, 7168])
@pytest.mark.parametrize("fp8", FP8)
def test_many_shapes(pools, ranks, fp8, hidden, seed):
    scenario = SCENARIO._replace(hidden=hidden, seed=seed, tokens=(9, 0, 16, 4, 1), experts_per_rank=4, topk=4)
    case = Case(scenario, fp8=fp8, hooks=bool(seed % 2))
    require_all(pools.run(ranks, observe, case), Expected(case, ranks), case)


def test_calls_repeated_give_the_same_bits(pools):
    case = Case(SCENARIO, fp8="fp8")
    first, second = (pools.run(3, observe, case) for _ in range(2))
    for one, another in zip(first, second, strict=True):
        for name, values in one._asdict().items():
            if isinstance(values, torch.Tensor):
                assert torch.equal(values.view(torch.uint8), getattr(another, name).view(torch.uint8)), name


def measure(rank: Rank, fp8: str) -> tuple[float, float]:
    """Of experts that give back their rows: DeepEP's difference, and the largest of one element beyond rounding."""
    case = Case(SCENARIO._replace(tokens=(48, 31), weights="softmax"))
    x, ids, weights = case.inputs(rank.size)[rank.rank]
    buffer = open_buffer(rank, case.scenario)
    options = case.scenario.options(rank.size)
    received, counts, handle, _, _ = buffer.low_latency_dispatch(
        x, ids, options["max_tokens"], options["num_experts"], **FP8[fp8]
    )
    if isinstance(received, tuple):
        rows = cast_back(packed(received[0], counts), packed(received[1], counts))
        received = padded_as(received[0].shape, rows, counts)
    combined = buffer.low_latency_combine(received, ids, weights, handle)[0]
    buffer.destroy()
    wanted = x.float() * weights.masked_fill(ids < 0, 0).sum(1, keepdim=True)
    # bfloat16 has 8 bits; e4m3 has 4, of a value that is at most as large as the greatest of its block.
    greatest = wanted.abs().view(len(x), -1, 128).amax(2).repeat_interleave(128, 1)
    bound = wanted.abs() * 2**-8 if fp8 == "bf16" else greatest * 2**-4 + wanted.abs() * 2**-7
    return difference(combined, wanted), float(((combined.float() - wanted).abs() - bound).max())


@pytest.mark.parametrize(("fp8", "bound"), [("bf16", 1e-5), ("fp8", 9e-4)])
def test_sums_are_as_near_as_deep_ep_asks(pools, fp8, bound):
    for total, beyond in pools.run(2, measure, fp8):
        assert total < bound
        assert beyond <= 0


def hold_two_handles(rank: Rank, order: tuple[int, int]) -> list[bool]:
    """Two dispatches sent before either is received; combined in an order, with both sends before both receives."""
    cases = [Case(SCENARIO._replace(seed=seed)) for seed in range(2)]
    inputs = [case.inputs(rank.size) for case in cases]
    buffer = open_buffer(rank, SCENARIO)
    options = SCENARIO.options(rank.size)
    equal = []
    for _ in range(3):
        sent = [
            buffer.low_latency_dispatch(
                given[rank.rank].x, given[rank.rank].topk_ids, options["max_tokens"], options["num_experts"],
                use_fp8=False, return_recv_hook=True,
            )
            for given in inputs
        ]  # fmt: skip
        for number in order:
            sent[number][4]()
        combines = []
        for number in order:
            _, ids, weights = inputs[number][rank.rank]
            rows, _, handle, _, _ = sent[number]
            combines.append(buffer.low_latency_combine(rows.clone(), ids, weights, handle, return_recv_hook=True))
        for _, _, hook in reversed(combines):
            hook()
        for number, (combined, _, _) in zip(order, combines, strict=True):
            wanted = given_back(inputs[number], SCENARIO.num_experts(rank.size))[rank.rank]
            equal.append(torch.equal(combined, wanted))
    buffer.destroy()
    return equal


def given_back(inputs: list[RankInput], num_experts: int) -> list[torch.Tensor]:
    """The sums of experts that give back their rows."""
    rows = reference.dispatch(inputs, num_experts)
    return reference.combine(inputs, rows, [each.rows for each in rows])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["as-sent", "crosswise"])
def test_two_handles_are_alive_at_the_same_time(pools, ranks, order):
    for equal in pools.run(ranks, hold_two_handles, order):
        assert equal == [True] * 6


def split_calls(rank: Rank) -> list[list[Step]]:
    """The steps that a rank goes through in each of the four parts."""
    x, ids, weights = Case().inputs(rank.size)[rank.rank]
    buffer = open_buffer(rank, SCENARIO)
    options = SCENARIO.options(rank.size)
    parts: list[list[Step]] = []

    def dispatch() -> tuple:
        return buffer.low_latency_dispatch(
            x, ids, options["max_tokens"], options["num_experts"], use_fp8=False, return_recv_hook=True
        )

    dispatch()[4]()
    buffer._low_latency._windows.steps.session.watch_steps(lambda step: parts[-1].append(step))
    parts.append([])
    rows, _, handle, _, hook = dispatch()
    parts.append([])
    hook()
    parts.append([])
    *_, hook = buffer.low_latency_combine(rows.clone(), ids, weights, handle, return_recv_hook=True)
    parts.append([])
    hook()
    buffer.destroy()
    return parts


def test_a_hook_does_what_waits_for_rows_of_others(pools):
    parts = [
        [Step.ANNOUNCE, Step.COUNTS, Step.PLACE],
        [Step.ARRIVALS, Step.EXPERTS],
        [Step.DONE],
        [Step.DONE, Step.REDUCE],
    ]
    assert pools.run(3, split_calls) == [parts] * 3


def bytes_of_rows(rank: Rank) -> tuple[int, int]:
    """How far into a row of a window that was empty something was written, with fp8, and the bytes of a row."""
    x, ids, _ = Case().inputs(rank.size)[rank.rank]
    buffer = open_buffer(rank, SCENARIO)
    options = SCENARIO.options(rank.size)
    buffer.low_latency_dispatch(x, ids, options["max_tokens"], options["num_experts"], use_fp8=True)
    rows = buffer._low_latency._live[0].rows.rows.view(torch.uint8)
    written = rows.any(0).nonzero().max()
    buffer.destroy()
    return int(written) + 1, rows.shape[1]


def test_fp8_rows_cross_the_window_as_bytes_and_scales(pools):
    assert pools.run(2, bytes_of_rows) == [(SCENARIO.hidden + SCENARIO.hidden // 128 * 4, 2 * SCENARIO.hidden)] * 2


# What each mutation is caught by.
CATCHES = {
    "statistics-overwritten": lambda seen, wanted: require_statistics(seen, wanted, True),
    "zero-copy-ignored": require_sums,
    "source-tokens-permuted": require_order,
    "first-expert-miscounted": require_counts,
}


@pytest.mark.parametrize("mutation", CATCHES)
def test_a_mistake_that_others_do_not_notice_is_caught(pools, mutation):
    case = Case(SCENARIO)
    expected = Expected(case, 2)
    CATCHES[mutation](pools.run(2, observe, case), expected)
    mistaken = pools.run(2, observe, case, mutation)
    with pytest.raises(AssertionError):
        CATCHES[mutation](mistaken, expected)


def size_of_window(rank: Rank) -> tuple[int, int]:
    buffer = open_buffer(rank, SCENARIO)
    x, ids, _ = Case().inputs(rank.size)[rank.rank]
    options = SCENARIO.options(rank.size)
    buffer.low_latency_dispatch(x, ids, options["max_tokens"], options["num_experts"])
    steps = buffer._low_latency._windows.steps
    mapped = steps.layout.total_bytes
    buffer.destroy()
    return mapped, Buffer.get_low_latency_rdma_size_hint(
        options["max_tokens"], SCENARIO.hidden, rank.size, options["num_experts"]
    )


def test_the_size_hint_is_what_is_mapped(pools):
    for mapped, hint in pools.run(3, size_of_window):
        assert mapped == hint
