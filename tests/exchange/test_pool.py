"""The harness itself: a failure names the rank and shows where it stood, and the next test gets new ranks."""

from __future__ import annotations

import os
import signal

import pytest

from .pool import Ended, Pool, Rank, RanksFailed


def report_place(rank: Rank) -> tuple[int, int, int]:
    return rank.rank, rank.size, os.getpid()


def raise_on(rank: Rank, culprit: int) -> None:
    if rank.rank == culprit:
        raise ValueError("this rank is out of order")


def hang_on(rank: Rank, culprit: int) -> None:
    if rank.rank == culprit:
        rank.wait_for_parent()


def die_on(rank: Rank, culprit: int) -> None:
    if rank.rank == culprit:
        os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_live_from_one_program_to_the_next(pools):
    first, second = pools.run(3, report_place), pools.run(3, report_place)
    assert [place[:2] for place in first] == [(0, 3), (1, 3), (2, 3)]
    assert first == second


@pytest.mark.parametrize(
    ("program", "text", "deadline_s"),
    [
        (raise_on, "rank 1 of 3: Traceback.*raise_on.*this rank is out of order", 60.0),
        (hang_on, "rank 1 of 3 did not finish.*hang_on", 2.0),
        (die_on, "rank 1 of 3: ended with exit code -9", 60.0),
    ],
    ids=["raises", "hangs", "dies"],
)
def test_failure_names_the_rank_and_the_next_program_gets_new_ranks(pools, program, text, deadline_s):
    before = {pid for _, _, pid in pools.run(3, report_place)}
    with pytest.raises(RanksFailed, match=f"(?s){text}"):
        pools.run(3, program, 1, deadline_s=deadline_s)
    after = pools.run(3, report_place)
    assert before.isdisjoint(pid for _, _, pid in after)
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_program_that_nobody_waits_for_any_more_leaves_nothing_to_the_next(pools, monkeypatch):
    def interrupted(_pool: Pool, **_: object) -> None:
        raise KeyboardInterrupt

    before = {pid for _, _, pid in pools.run(3, report_place)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pool, "collect", interrupted)
        pools.run(3, raise_on, 1)
    assert before.isdisjoint(pid for _, _, pid in pools.run(3, report_place))


def test_a_death_that_was_asked_for_is_reported_and_not_a_failure(fresh_pool):
    pool = fresh_pool(2)
    pool.start(die_on, 0)
    assert pool.collect(dead={0}) == [Ended(-signal.SIGKILL), None]
