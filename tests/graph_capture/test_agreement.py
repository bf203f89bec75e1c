"""All ranks check a step together: one verdict, the same number of exchanges, and nobody waits in vain."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

import pytest
import torch

from sglang_ascend_moe import CaptureRefused, Exchange, launches
from sglang_ascend_moe.errors import PeerLost, code_of
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.graph_capture.agreement import check_together, refusal_together
from tests.exchange.pool import Ended, Rank
from tests.graph_capture.refused_steps import REFUSED

OPTIONS = {"num_experts": 6, "hidden": 16, "max_tokens": 4, "topk": 2}
ITEM = next(case for case in REFUSED if case.title == "item")


class Outcome(NamedTuple):
    """What a rank saw: an error, how often its step ran, exchanges taken, whether the exchange works afterwards."""

    error: str
    words: str
    runs: int
    epoch: int
    works: bool


def name_of(error: BaseException | None) -> str:
    """The code of an exception, or the type of one that has none; empty without."""
    return "" if error is None else code_of(error) or type(error).__name__


def copy(rows: ExpertRows) -> None:
    rows.out.copy_(rows.rows)


def check_an_exchange(
    rank: Rank, guilty: int | None, fault: str, passes: dict[int, int], subjects: dict[int, str]
) -> Outcome:
    """What every rank saw of a check of a step with an exchange in it, in which `guilty` does what `fault` says."""
    with Exchange.create(rank.group, **OPTIONS) as exchange:
        x = torch.ones(2, 16, dtype=torch.bfloat16)
        ids, weights = torch.tensor([[0, 5], [1, 2]]), torch.ones(2, 2)
        runs = []

        def step() -> torch.Tensor:
            runs.append(None)
            if rank.rank == guilty and fault == "reads":
                ITEM.step()
            out = torch.empty_like(x)
            launches.launch(lambda *tensors: exchange.prepare(*tensors[:3], copy, tensors[3]), [x, ids, weights], [out])
            if rank.rank == guilty and fault == "raises" and len(runs) == 2:
                raise KeyError("of the step")
            return out

        error: BaseException | None = None
        try:
            check_together(
                step, rank.group, passes=passes.get(rank.rank, 2), subject=subjects.get(rank.rank, "the bucket of 2")
            )
        except (CaptureRefused, KeyError) as found:
            error = found
        taken = exchange.epoch
        works = torch.equal(exchange.run(x, ids, weights, copy), torch.full_like(x, 2.0))
        return Outcome(name_of(error), str(error), len(runs), taken, works)


def checked(pools, ranks: int, *, guilty=None, fault="", passes=None, subjects=None) -> list[Outcome]:
    return pools.run(ranks, check_an_exchange, guilty, fault, passes or {}, subjects or {})


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_step_that_all_ranks_can_capture_is_not_refused(pools, ranks: int):
    assert checked(pools, ranks) == [Outcome("", "None", 3, 3, True)] * ranks


@pytest.mark.parametrize(("ranks", "guilty"), [(2, 0), (2, 1), (3, 1)])
def test_what_one_rank_finds_every_rank_refuses_after_the_same_number_of_exchanges(pools, ranks: int, guilty: int):
    outcomes = checked(pools, ranks, guilty=guilty, fault="reads")
    assert len(set(outcomes)) == 1
    kind, words, runs, epoch, works = outcomes[0]
    assert (kind, runs, epoch, works) == (CaptureRefused.code, 3, 3, True)
    named = ("the bucket of 2", f"rank {guilty}", "Tensor.item", f"refused_steps.py:{ITEM.line} ")
    assert [name for name in named if name not in words] == []
    assert words.count("rank ") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"passes": {1: 5}}, "rank 0 the bucket of 2 in 2 passes, rank 1 the bucket of 2 in 5"),
        ({"subjects": {1: "the bucket of 4"}}, "rank 0 the bucket of 2 in 2 passes, rank 1 the bucket of 4 in 2"),
    ],
    ids=["passes", "bucket"],
)
def test_ranks_that_would_capture_different_things_are_refused_before_the_first_run(pools, settings, words: str):
    for kind, said, runs, epoch, works in checked(pools, 3, **settings):
        assert (kind, runs, epoch, works) == (CaptureRefused.code, 0, 0, True)
        assert words in said


def test_what_the_step_raises_on_one_rank_the_others_are_told_and_nobody_runs_on(pools):
    outcomes = checked(pools, 3, guilty=1, fault="raises")
    assert [outcome.error for outcome in outcomes] == [CaptureRefused.code, "KeyError", CaptureRefused.code]
    assert [(outcome.runs, outcome.epoch, outcome.works) for outcome in outcomes] == [(2, 2, True)] * 3
    assert [name for name in ("rank 1", "KeyError: 'of the step'") if name not in outcomes[0].words] == []


def die_in_the_step(rank: Rank) -> None:
    def step() -> None:
        if rank.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(PeerLost, match="the bucket of 2"):
        check_together(step, rank.group, subject="the bucket of 2")


def test_a_rank_that_dies_while_it_checks_is_no_hang(fresh_pool):
    pool = fresh_pool(2)
    pool.start(die_in_the_step)
    assert pool.collect(dead=[1]) == [None, Ended(-signal.SIGKILL)]


def refuse_alone(rank: Rank, error: str) -> tuple[str, str]:
    raised = {"refuses": CaptureRefused("no graph for this"), "fails": MemoryError("no room")}
    try:
        with refusal_together(rank.group, subject="the bucket of 2"):
            if error and rank.rank == 1:
                raise raised[error]
    except (CaptureRefused, MemoryError) as found:
        return name_of(found), str(found)
    return "", ""


@pytest.mark.parametrize(
    ("error", "own", "others", "named"),
    [
        ("", "", "", ()),
        ("refuses", CaptureRefused.code, CaptureRefused.code, ("the bucket of 2", "rank 1", "no graph for this")),
        ("fails", "MemoryError", CaptureRefused.code, ("the bucket of 2", "rank 1", "MemoryError: no room")),
    ],
    ids=["nobody", "one refuses", "one fails"],
)
def test_what_one_rank_cannot_record_no_rank_keeps(pools, error: str, own: str, others: str, named: tuple[str, ...]):
    raised = pools.run(3, refuse_alone, error)
    assert [name for name, _ in raised] == [others, own, others]
    assert [name for name in named for words in (raised[0][1], raised[2][1]) if name not in words] == []
