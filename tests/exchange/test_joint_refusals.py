"""What is wrong on one rank is refused on every rank, by name, and the exchange works afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from msgspec.structs import asdict

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch, Unsupported, WindowTooSmall
from sglang_ascend_moe.exchange.control.blocks import PROTOCOL_VERSION, Hello
from sglang_ascend_moe.native.library import native_layout
from sglang_ascend_moe.windows.layout import LAYOUT_VERSION, ExchangeParameters, plan_window

from . import reference
from .bits import require_same_values
from .pool import Rank
from .reference import RankInput, scale_by_expert
from .rounds import window_bytes_for
from .scenario import Scenario
from .surface import IMPLEMENTATIONS, PHASES, compute, open_exchange

SCENARIO = Scenario(tokens=(6, 4, 7), max_tokens=7, topk=2, hidden=32)


class Spoiled(NamedTuple):
    """An input that must be refused, and what every rank's message has to name."""

    spoil: Callable[[RankInput], RankInput]
    named: tuple[str, ...]


def with_id(value: int) -> Callable[[RankInput], RankInput]:
    def spoil(given: RankInput) -> RankInput:
        ids = given.topk_ids.clone()
        ids[-1, -1] = value
        return given._replace(topk_ids=ids)

    return spoil


def with_tokens(tokens: int) -> Callable[[RankInput], RankInput]:
    return lambda given: RankInput(*(tensor[:1].expand(tokens, -1).contiguous() for tensor in given))


SPOILED = {
    "x-dtype": Spoiled(lambda given: given._replace(x=given.x.float()), ("float32",)),
    "x-vector": Spoiled(lambda given: given._replace(x=given.x[0]), ()),
    "hidden": Spoiled(lambda given: given._replace(x=given.x[:, :16]), ("16", "32")),
    "ids-dtype": Spoiled(lambda given: given._replace(topk_ids=given.topk_ids.to(torch.int16)), ("int16",)),
    "ids-float": Spoiled(lambda given: given._replace(topk_ids=given.topk_ids.float()), ("float32",)),
    "topk": Spoiled(lambda given: given._replace(topk_ids=given.topk_ids[:, :1]), ("1", "2")),
    "fewer-ids-than-tokens": Spoiled(lambda given: given._replace(topk_ids=given.topk_ids[1:]), ()),
    "weights-dtype": Spoiled(lambda given: given._replace(topk_weights=given.topk_weights.long()), ("int64",)),
    "weights-shape": Spoiled(lambda given: given._replace(topk_weights=given.topk_weights[:, :1]), ("1", "2")),
    "id-minus-two": Spoiled(with_id(-2), ("-2",)),
    "id-past-the-end": Spoiled(with_id(12), ("12", "11")),
    "id-far-out": Spoiled(with_id(2**40), (str(2**40),)),
    "id-far-below": Spoiled(with_id(-(2**40)), (str(-(2**40)),)),
    "too-many-tokens": Spoiled(with_tokens(8), ("8", "max_tokens", "7")),
}
CALLS = (*(f"dispatch-{phase}" for phase in PHASES), *(f"run-{phase}" for phase in PHASES))


def call(exchange, how: str, given: RankInput, rank: Rank):
    """One of `CALLS`, up to the result."""
    method, phase = how.split("-")
    if method == "run":
        return exchange.run(*given, lambda rows: compute(rows, scale_by_expert, rank), phase=phase)
    rows = exchange.dispatch(*given, phase=phase)
    compute(rows, scale_by_expert, rank)
    return exchange.combine(rows.out, rows)


def require_works(exchange, rank: Rank, scenario: Scenario = SCENARIO) -> None:
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert)
    for how in CALLS:
        combined = call(exchange, how, inputs[rank.rank], rank)
        require_same_values(combined, expected.combined[rank.rank], f"{how} after a refusal")


def refuse_one_rank(rank: Rank, implementation: str, name: str, how: str) -> None:
    scenario = SCENARIO._replace(experts_per_rank=12 // rank.size)
    good = scenario.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, scenario) as exchange:
        for culprit in range(rank.size):
            given = SPOILED[name].spoil(good) if rank.rank == culprit else good
            with pytest.raises(InvalidInput) as caught:
                call(exchange, how, given, rank)
            message = str(caught.value)
            # On the culprit itself "this rank" is as good a name.
            names = (f"rank {culprit}", "this rank") if rank.rank == culprit else (f"rank {culprit}",)
            if not any(name in message for name in names):
                raise AssertionError(f"rank {rank.rank} does not name rank {culprit}: {message}")
            missing = [value for value in SPOILED[name].named if value not in message]
            if missing:
                raise AssertionError(f"rank {rank.rank} does not name {missing}: {message}")
        require_works(exchange, rank, scenario)


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("ranks", [2, 3], ids=lambda ranks: f"{ranks}ranks")
def test_bad_input_on_one_rank_is_refused_on_every_rank(pools, implementation, ranks, how, name):
    pools.run(ranks, refuse_one_rank, implementation, name, how)


def refuse_unknown_phase(rank: Rank, implementation: str) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for method in ("dispatch", "run"):
            with pytest.raises(InvalidInput, match=r"encode.*decode.*prefill"):
                call(exchange, f"{method}-encode", good, rank)
        require_works(exchange, rank)


def test_an_unknown_phase_is_refused(pools, implementation):
    pools.run(2, refuse_unknown_phase, implementation)


def refuse_broken_promise(rank: Rank, implementation: str, how: str) -> None:
    scenario = SCENARIO._replace(topk=3, routing="distinct")
    good = scenario.inputs(rank.size)[rank.rank]
    ids = good.topk_ids.clone()
    ids[2] = torch.tensor([4, 5, 4])
    # -1 may repeat: it names no expert.
    ids[0] = -1
    with open_exchange(implementation, rank, scenario, distinct_topk=True) as exchange:
        with pytest.raises(InvalidInput, match=r"4.*distinct_topk"):
            call(exchange, how, good._replace(topk_ids=ids) if rank.rank == 1 else good, rank)
        require_works(exchange, rank, scenario)


@pytest.mark.parametrize("how", CALLS)
def test_a_repeated_expert_is_refused_where_distinct_topk_was_promised(pools, implementation, how):
    pools.run(2, refuse_broken_promise, implementation, how)


def refuse_expert_out(rank: Rank, implementation: str) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        rows = exchange.dispatch(*good)
        compute(rows, scale_by_expert, rank)
        total = int(rows.counts.sum())
        for wrong, named in (
            (rows.out.float(), "float32"),
            (rows.out[: total - 1], "at least"),
            (rows.out[:, :16], "16"),
            (rows.out[0], "expert_out"),
        ):
            with pytest.raises(InvalidInput, match=named):
                exchange.combine(wrong, rows)
        expected = reference.exchange(
            SCENARIO.inputs(rank.size), SCENARIO.num_experts(rank.size), scale_by_expert
        ).combined[rank.rank]
        require_same_values(exchange.combine(rows.out, rows), expected, "combine after refusals")
        require_works(exchange, rank)


def test_a_wrong_expert_out_is_refused_and_the_handle_stays_good(pools, implementation):
    pools.run(3, refuse_expert_out, implementation)


def disagree(rank: Rank, implementation: str, usual: str, odd: str) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for culprit in range(rank.size):
            with pytest.raises(ProtocolMismatch) as caught:
                call(exchange, odd if rank.rank == culprit else usual, good, rank)
            for word in ("rank", "decode"):
                if word not in str(caught.value):
                    raise AssertionError(f"rank {rank.rank} does not name {word!r}: {caught.value}")
        require_works(exchange, rank)


@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        ("dispatch-decode", "dispatch-prefill"),
        ("dispatch-prefill", "dispatch-decode"),
        ("run-prefill", "dispatch-decode"),
        ("dispatch-decode", "run-prefill"),
        ("run-decode", "run-prefill"),
    ],
    ids=lambda how: how,
)
@pytest.mark.parametrize("ranks", [2, 3, 4], ids=lambda ranks: f"{ranks}ranks")
def test_decode_against_prefill_is_a_mismatch_on_every_rank(pools, implementation, ranks, usual, odd):
    pools.run(ranks, disagree, implementation, usual, odd)


def overfill_window(rank: Rank, how: str) -> None:
    """Every rank sends all its rows to rank 0: more than a window for two tokens of each rank takes."""
    scenario = SCENARIO._replace(tokens=(7,))
    window_bytes = window_bytes_for(rank.size, scenario._replace(hidden=2048), tokens=2)
    scenario = scenario._replace(hidden=2048)
    x, ids, weights = scenario.inputs(rank.size)[rank.rank]
    with open_exchange("windows", rank, scenario, window_bytes=window_bytes) as exchange:
        with pytest.raises(WindowTooSmall, match="window_bytes") as caught:
            call(exchange, how, RankInput(x, torch.zeros_like(ids), weights), rank)
        enough = exchange.memory(ranks=rank.size, **scenario.options(rank.size)).total
        needed = [int(word) for word in str(caught.value).replace(",", " ").split() if word.isdigit()]
        if not any(window_bytes < number <= enough for number in needed):
            raise AssertionError(f"no number of bytes in {window_bytes} .. {enough} is named: {caught.value}")
        require_works(exchange, rank, scenario._replace(tokens=(2,)))
        # What did not fit in one round is what several rounds are for.
        exchange.run(x, torch.zeros_like(ids), weights, lambda rows: rows.out.zero_(), phase="prefill")
    named = next(number for number in needed if window_bytes < number <= enough)
    with open_exchange("windows", rank, scenario, window_bytes=named) as exchange:
        call(exchange, how, RankInput(x, torch.zeros_like(ids), weights), rank)


@pytest.mark.parametrize("how", ["dispatch-decode", "dispatch-prefill", "run-decode"])
@pytest.mark.parametrize("ranks", [2, 3], ids=lambda ranks: f"{ranks}ranks")
def test_rows_that_do_not_fit_the_window_are_refused_with_the_bytes_that_would_do(pools, ranks, how):
    pools.run(ranks, overfill_window, how)


OPTIONS = {
    "num_experts": (12, 24),
    "hidden": (32, 64),
    "max_tokens": (7, 9),
    "topk": (2, 3),
    "dtype": (torch.bfloat16, torch.float16),
    "distinct_topk": (False, True),
    "slots": (1, 2),
}


def create_differently(rank: Rank, implementation: str, option: str, culprit: int) -> None:
    usual, odd = OPTIONS[option]
    scenario = SCENARIO._replace(experts_per_rank=12 // rank.size)
    with pytest.raises(ProtocolMismatch) as caught:
        open_exchange(implementation, rank, scenario, **{option: odd if rank.rank == culprit else usual})
    message = str(caught.value).lower()
    for value in (option, str(usual).removeprefix("torch.").lower(), str(odd).removeprefix("torch.").lower()):
        if value not in message and not (isinstance(usual, bool) and str(int(value == "true")) in message):
            raise AssertionError(f"rank {rank.rank} does not name {value}: {message}")
    with open_exchange(implementation, rank, scenario) as exchange:
        require_works(exchange, rank, scenario)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("culprit", [0, 1, 2], ids=lambda culprit: f"rank{culprit}")
def test_options_that_differ_are_a_mismatch_on_every_rank(pools, implementation, option, culprit):
    pools.run(3, create_differently, implementation, option, culprit)


def create_with_different_windows(rank: Rank) -> None:
    usual = window_bytes_for(rank.size, SCENARIO, tokens=4)
    odd = window_bytes_for(rank.size, SCENARIO._replace(hidden=4096), tokens=4)
    with pytest.raises(ProtocolMismatch, match=f"window_bytes.*({usual}.*{odd}|{odd}.*{usual})"):
        open_exchange("windows", rank, SCENARIO, window_bytes=odd if rank.rank == 1 else usual)
    with open_exchange("windows", rank, SCENARIO) as exchange:
        require_works(exchange, rank)


def test_windows_of_different_sizes_are_a_mismatch_on_every_rank(pools):
    pools.run(3, create_with_different_windows)


def create_with_different_versions(rank: Rank, name: str, usual: int, replacement: object) -> None:
    with patch(f"sglang_ascend_moe.exchange.opening.{name}", replacement) if rank.rank == 1 else nullcontext():
        with pytest.raises(ProtocolMismatch, match=r"rank.*\b9\b.*same version") as caught:
            open_exchange("windows", rank, SCENARIO)
        if str(usual) not in str(caught.value):
            raise AssertionError(f"rank {rank.rank} does not name the usual version: {caught.value}")
    with open_exchange("windows", rank, SCENARIO) as exchange:
        require_works(exchange, rank)


@pytest.mark.parametrize(
    ("name", "usual", "replacement"),
    [("LAYOUT_VERSION", LAYOUT_VERSION, 9), ("Hello", PROTOCOL_VERSION, partial(Hello, protocol=9))],
    ids=["layout", "protocol"],
)
def test_versions_that_differ_are_a_mismatch_on_every_rank(pools, name, usual, replacement):
    pools.run(3, create_with_different_versions, name, usual, replacement)


def create_with_different_timeouts(rank: Rank) -> None:
    with pytest.raises(ProtocolMismatch, match=r"timeout_s.*5\.0.*6\.0"):
        open_exchange("windows", rank, SCENARIO, timeout_s=5.0 + rank.rank)


def test_timeouts_that_differ_are_a_mismatch_on_every_rank(pools):
    pools.run(2, create_with_different_timeouts)


REFUSED_OPTIONS = {
    "num_experts-not-divisible": ({"num_experts": 10}, InvalidInput, "num_experts=10"),
    "no-experts": ({"num_experts": 0}, InvalidInput, "num_experts=0"),
    "hidden-not-multiple-of-16": ({"hidden": 40}, InvalidInput, "hidden=40"),
    "no-hidden": ({"hidden": 0}, InvalidInput, "hidden=0"),
    "no-tokens": ({"max_tokens": 0}, InvalidInput, "max_tokens=0"),
    "no-topk": ({"topk": 0}, InvalidInput, "topk=0"),
    "no-slots": ({"slots": 0}, InvalidInput, "slots=0"),
    "no-timeout": ({"timeout_s": 0.0}, InvalidInput, "timeout_s=0"),
    "dtype": ({"dtype": torch.float64}, InvalidInput, "float64"),
    "quant": ({"quant": "int4"}, Unsupported, "quant='int4'"),
    "layout": ({"layout": "spiral"}, Unsupported, "layout='spiral'"),
}


def create_refused(rank: Rank, implementation: str, name: str) -> None:
    options, error, named = REFUSED_OPTIONS[name]
    with pytest.raises(error, match=named):
        open_exchange(implementation, rank, SCENARIO, **options)
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        require_works(exchange, rank)


@pytest.mark.parametrize("name", REFUSED_OPTIONS)
def test_options_out_of_range_are_refused_by_name(pools, implementation, name):
    pools.run(3, create_refused, implementation, name)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden": 2**32 + 16}, "hidden=4294967312"),
        ({"num_experts": 2**32}, "num_experts=4294967296"),
        ({"max_tokens": 2**28}, "max_tokens=268435456"),
        ({"max_tokens": 2**28, "window_bytes": 2**50}, "window_bytes"),
        ({"max_tokens": 2**29}, "max_tokens=536870912 times topk=4"),
        ({"max_tokens": 2**23, "topk": 256, "window_bytes": 2**20}, "max_tokens=8388608 times topk=256"),
        ({"num_experts": 2**28}, "num_experts=268435456 for each of 8 ranks"),
        ({"max_tokens": 2**20, "hidden": 2**31 - 16, "slots": 64}, "hidden=2147483632.*slots=64"),
        ({"timeout_s": 2e6}, "timeout_s=2000000.0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_numbers_that_kernels_cannot_tell_apart_are_refused_by_name(options, named):
    with pytest.raises(InvalidInput, match=named):
        Exchange.memory(ranks=8, **{"num_experts": 8, "hidden": 32, "max_tokens": 8, "topk": 4, **options})


@pytest.mark.parametrize(
    ("name", "largest", "options"),
    [
        ("max_tokens", 2**30 - 1, {"topk": 2}),
        ("max_tokens", 2**23 - 1, {"topk": 256, "window_bytes": 2**20}),
        ("num_experts", 2**31 - 1, {"window_bytes": 2**35}),
        # 2**23 rows in 64 slots, each with its result: 64 * 2 * 2**23 * (2**33 - 64) bytes are just below 2**63.
        ("max_tokens", 2**23, {"hidden": 2**31 - 16, "slots": 64, "dtype": "float32"}),
    ],
    ids=["two-per-token", "256-per-token", "experts", "bytes"],
)
def test_the_largest_numbers_that_kernels_can_tell_apart_are_taken(name, largest, options):
    given = {"ranks": 1, "num_experts": 1, "hidden": 32, "max_tokens": 8, "topk": 1, "counts": "matrix", **options}
    layout = plan_window(ExchangeParameters(**{**given, name: largest}))
    numbers = {**asdict(layout.parameters), **asdict(layout), **asdict(layout.offsets)}
    described = native_layout(layout)
    held = {field: getattr(described, field) for field in numbers if hasattr(described, field)}
    assert held == {field: numbers[field] for field in held}
    with pytest.raises(InvalidInput, match=name):
        plan_window(ExchangeParameters(**{**given, name: largest + 1}))


def create_in_tiny_window(rank: Rank) -> None:
    with pytest.raises(WindowTooSmall, match="window_bytes=4096") as caught:
        open_exchange("windows", rank, SCENARIO, window_bytes=4096)
    needed = max(int(word) for word in str(caught.value).replace("=", " ").split() if word.isdigit())
    with open_exchange("windows", rank, SCENARIO, window_bytes=needed) as exchange:
        exchange.run(*SCENARIO.inputs(rank.size)[rank.rank], lambda rows: rows.out.zero_(), phase="prefill")


def test_a_window_that_cannot_hold_one_token_of_each_rank_is_refused_with_the_bytes_that_would_do(pools):
    pools.run(3, create_in_tiny_window)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_baseline_and_the_windows_share_one_surface(name):
    for method in ("create", "dispatch", "combine", "run", "close", "__enter__", "__exit__"):
        assert callable(getattr(IMPLEMENTATIONS[name], method))


def create_collective_with_window(rank: Rank) -> None:
    with pytest.raises(Unsupported, match="window_bytes=1000000"):
        open_exchange("collective", rank, SCENARIO, window_bytes=1_000_000)


def test_the_baseline_refuses_a_window_it_would_not_use(pools):
    pools.run(2, create_collective_with_window)
