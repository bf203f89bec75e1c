"""Exchanges in which ranks grant places do what those with a matrix do. `pytest --granting` runs every test so."""

from __future__ import annotations

import signal

import pytest
import torch

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.errors import PeerLost, PeerTimeout, ProtocolMismatch, Unsupported, WindowTooSmall
from sglang_ascend_moe.native.codes import Step
from sglang_ascend_moe.windows import layout

from .harmed_ranks import SCENARIO as HARMED
from .harmed_ranks import call, harm_at, see_fault
from .pool import Ended, Rank
from .rounds import window_bytes_for
from .scenario import Scenario
from .schedules.test_rounds import run_in_rounds
from .surface import granting, open_exchange
from .test_bit_exact import SCENARIOS, exchange_in_every_schedule
from .test_refusal_sequences import mix_refusals

CHOSEN = (
    "top8-distinct", "one-expert-per-rank", "many-experts-per-rank", "no-token-on-some-ranks", "no-token-on-any-rank",
    "uneven-tokens", "all-to-the-last-expert", "expert-repeated-in-token",
)  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_exchange_equals_the_reference_to_the_bit(pools, ranks, name):
    pools.run(ranks, granting, exchange_in_every_schedule, "windows", SCENARIOS[name])


@pytest.mark.parametrize("ranks", [3, 8], ids=lambda ranks: f"{ranks}ranks")
def test_refusals_and_calls_in_any_order(pools, ranks):
    played = pools.run(ranks, granting, mix_refusals, "windows", 300)
    assert all(counts == played[0] for counts in played)
    assert all(played[0].values()), f"an act was never played: {played[0]}"


@pytest.mark.parametrize("workers", [1, 2], ids=["in-turn", "overlapped"])
def test_rounds_equal_the_reference(pools, workers):
    scenario = Scenario(hidden=512, tokens=(40, 33), routing="hot-rank", topk=4)
    assert len(set(pools.run(3, granting, run_in_rounds, scenario, 2, workers))) == 1


def see_the_same(rank: Rank, counts: str) -> list:
    """All that a dispatch shows of its counts, and how rows are refused that do not fit."""
    scenario = Scenario(tokens=(7,), hidden=2048)
    x, ids, weights = scenario.inputs(rank.size)[rank.rank]
    options = {"counts": counts, "window_bytes": window_bytes_for(rank.size, scenario, tokens=3)}
    with open_exchange("windows", rank, scenario, **options) as exchange:
        exchange.observation.counters.measures_imbalance = True
        rows = exchange.dispatch(x[:1], ids[:1], weights[:1])
        phases = {kind: counts.largest_rows for kind, counts in exchange.observation.phases.items()}
        seen = [exchange.rows_by_rank, exchange.counts_matrix.tolist(), rows.counts.tolist(), phases]
        with pytest.raises(WindowTooSmall) as caught:
            exchange.dispatch(x, torch.full_like(ids, scenario.num_experts(rank.size) - 1), weights)
        return [*seen, str(caught.value).partition(" do not fit")[0]]


def test_counts_and_refusals_are_those_of_a_matrix(pools):
    granted, known = (pools.run(4, see_the_same, counts) for counts in ("grants", "matrix"))
    assert granted == known
    assert granted[0][-1] == "56 rows for rank 3"


def fail(rank: Rank, step: Step, harm: signal.Signals, timeout_s: float) -> tuple[str, int | None]:
    with open_exchange("windows", rank, HARMED, timeout_s=timeout_s, counts="grants") as exchange:
        call(exchange, "decode", rank)
        # Of a call's last words some ranks have theirs before others, and may fail in the next one meanwhile.
        torch.distributed.barrier()
        if rank.rank == 1:
            exchange.watch_steps(harm_at(step, harm))
        try:
            seen = see_fault(exchange, rank, "decode", calls=2)
        finally:
            rank.note("failed")
        return seen.code, seen.rank


@pytest.mark.parametrize("step", [Step.ANNOUNCE, Step.COUNTS, Step.PLACE], ids=lambda step: step.name.lower())
def test_a_rank_that_dies_before_it_grants_or_places_is_named(fresh_pool, step):
    pool = fresh_pool(3)
    pool.start(fail, step, signal.SIGKILL, 60.0)
    assert pool.collect(dead={1}) == [(PeerLost.code, 1), Ended(-signal.SIGKILL), (PeerLost.code, 1)]


def test_a_rank_that_stops_before_it_grants_is_named(fresh_pool):
    pool = fresh_pool(3)
    pool.start(fail, Step.COUNTS, signal.SIGSTOP, 1.0)
    pool.await_notes("failed", [0, 2])
    pool.signal(1, signal.SIGKILL)
    assert pool.collect(dead={1}) == [(PeerTimeout.code, 1), Ended(-signal.SIGKILL), (PeerTimeout.code, 1)]


def disagree(rank: Rank) -> None:
    with pytest.raises(ProtocolMismatch, match=r"counts.*(matrix.*grants|grants.*matrix)"):
        open_exchange("windows", rank, Scenario(), counts="grants" if rank.rank else "matrix")


def test_ranks_that_do_not_agree_on_the_scheme_are_a_mismatch(pools):
    pools.run(3, disagree)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(Unsupported, match="counts='some' is none of auto, matrix, grants"):
        Exchange.memory(ranks=2, num_experts=4, hidden=16, max_tokens=2, topk=2, counts="some")


def test_records_grow_with_ranks_and_experts_where_places_are_granted():
    def control(ranks: int, counts: str) -> int:
        shape = {"hidden": 16, "max_tokens": 2, "topk": 2, "distinct_topk": True}
        regions = Exchange.memory(ranks=ranks, num_experts=ranks, counts=counts, **shape).regions
        return regions.records + regions.grants

    assert [control(ranks, "grants") for ranks in (96, 192, 384)] == [3 * 2 * 32 * ranks for ranks in (96, 192, 384)]
    assert control(384, "matrix") == 384 * 2 * 65 * 32


@pytest.mark.parametrize(
    ("ranks", "experts", "granting"),
    [(8, 256, False), (32, 256, False), (64, 64, False), (48, 384, True), (64, 256, True), (384, 384, True)],
)
def test_places_are_granted_where_counts_of_all_take_longer(monkeypatch, ranks, experts, granting):
    monkeypatch.setattr(layout, "RENDEZVOUS_UNITS", 2000)  # as it is without --granting
    shape = {"hidden": 16, "max_tokens": 2, "topk": 2}
    assert bool(Exchange.memory(ranks=ranks, num_experts=experts, **shape).regions.grants) == granting
