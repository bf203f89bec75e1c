"""What a live view says of each rank is what the server counted between two looks."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from sglang_ascend_moe.exchange.observation import GraphCounts
from sglang_ascend_moe.launch.top.live_view import view
from sglang_ascend_moe.launch.top.rates import Look, RankRates, rates_between, straggler
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.live_state import ExchangeState, PhaseState, RankState


def state(rank: int, rows: int, waited: list[float], *, stage: int = 0, replays: int = 0) -> RankState:
    """A rank that has received so many rows in decode, and half of them in prefill."""
    phases = {
        "decode": PhaseState(calls=4, rounds=4, tokens=rows // 2, rows=rows, dispatch_s=rows / 1000, combine_s=0.25),
        "prefill": PhaseState(calls=1, rounds=2, tokens=8, rows=rows // 2, dispatch_s=0.5, combine_s=0.5),
    }
    exchange = ExchangeState(
        num_experts=8, hidden=64, topk=2, dtype="bfloat16", max_tokens=16, window_bytes=4096, regions={"rows": 4096},
        capacity_rows=200, epochs=[9, 9], rows_by_rank=[190, 10], waited_s=waited, phases=phases,
    )  # fmt: skip
    return RankState(
        rank=rank, ranks=2, stage=stage, stages=1 + stage, options=Options(), exchanges=[exchange],
        graphs=GraphCounts("tape" if replays else "none", [4], replays),
    )  # fmt: skip


BEFORE = Look([state(0, 1000, [0.0, 1.0]), state(1, 2000, [2.0, 0.0])], 10.0)
AFTER = Look([state(0, 5000, [0.0, 1.5], replays=10), state(1, 3000, [2.25, 0.0])], 12.0)


def test_rates_are_what_was_counted_over_the_time_between():
    first, second = rates_between(BEFORE, AFTER)
    # 4000 rows in decode and 2000 in prefill, in two seconds.
    assert (first.rows_s, first.tokens_s, second.rows_s) == (3000.0, 1000.0, 750.0)
    assert (first.dispatch, first.combine) == (2.0, 0.0)
    assert (first.held_up, second.held_up) == ([0.0, 0.25], [0.125, 0.0])
    assert (first.imbalance, second.imbalance) == (1.6, 0.4)
    assert (first.fill, second.fill) == (0.95, 0.05)
    assert (first.graphs, first.replays_s) == ("tape", 5.0)


def test_every_exchange_of_a_rank_is_in_its_rates():
    def twice(look: Look) -> Look:
        return look._replace(states=[msgspec.structs.replace(one, exchanges=one.exchanges * 2) for one in look.states])

    once, both = rates_between(BEFORE, AFTER), rates_between(twice(BEFORE), twice(AFTER))
    assert [one.rows_s for one in both] == [2 * one.rows_s for one in once]
    assert [one.held_up for one in both] == [[2 * share for share in one.held_up] for one in once]


def test_a_server_that_was_started_anew_has_done_nothing_yet():
    for one in rates_between(AFTER, BEFORE._replace(at_s=14.0)):
        assert (one.rows_s, one.dispatch, one.replays_s, sum(one.held_up)) == (0.0, 0.0, 0.0, 0.0)


def test_a_rank_that_was_not_heard_before_is_left_out_until_it_was():
    only_one = BEFORE._replace(states=BEFORE.states[:1])
    assert [one.rank for one in rates_between(only_one, AFTER)] == [0]


def test_stages_are_compared_with_themselves():
    def staged(rows: int, at_s: float) -> Look:
        return Look([state(0, rows, [0.0, 0.0]), state(0, 2 * rows, [0.0, 0.0], stage=1)], at_s)

    assert [one.imbalance for one in rates_between(staged(1000, 1.0), staged(2000, 2.0))] == [1.0, 1.0]


def test_the_straggler_is_whom_the_others_wait_for():
    assert straggler(rates_between(BEFORE, AFTER), 0) == (1, 0.25)


def shown(rates: list[RankRates]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view("http://server", rates))
    written: io.StringIO = console.file
    return written.getvalue()


def test_the_view_names_who_is_late_and_who_gets_most_rows():
    text = shown(rates_between(BEFORE, AFTER))
    for said in ("rank 1 holds the others up for 25.0% of the time", "rank 0 receives 1.60 times the mean", "95.0%"):
        assert said in text


def test_a_table_fits_into_80_columns():
    busy = rates_between(BEFORE, AFTER)[0]._replace(
        rank=127, rows_s=1e6, tokens_s=1e6, held_up=[0.0] * 126 + [0.5, 0.0]
    )
    lines = shown([busy]).splitlines()
    assert max(map(len, (line.rstrip() for line in lines[:3]))) <= 80


def test_an_idle_server_is_called_idle():
    assert "the server is idle" in shown(rates_between(BEFORE, BEFORE._replace(at_s=11.0)))


def test_an_npu_that_replays_graphs_is_not_idle():
    replaying = [
        one._replace(rows_s=0.0, tokens_s=0.0, imbalance=None, replays_s=40.0) for one in rates_between(BEFORE, AFTER)
    ]
    assert "idle" not in shown(replaying)


@pytest.mark.parametrize("field", ["imbalance", "fill"])
def test_what_is_not_known_is_a_dash(field):
    [one, _] = rates_between(BEFORE, AFTER)
    assert " - " in shown([one._replace(**{field: None})])
