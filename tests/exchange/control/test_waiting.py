"""A rank that does not come to a collective is told from one that has ended by the clock, whatever gloo says."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout
from sglang_ascend_moe.exchange.control.waiting import Patience, wait_for_ranks
from sglang_ascend_moe.exchange.exchange import Exchange
from tests.exchange.pool import Rank

ABSENT = 1
SHORT_S = 0.5
LONG_S = 60.0


def gather_without_a_rank(rank: Rank, ends: bool, group_s: float, own_s: float | None) -> tuple[str, int | None] | None:
    """Code and rank of the error that the others meet when one rank ends, or stays away."""
    group = dist.new_group(backend="gloo")
    # Only now, for the ranks make the group within that time, too.
    group._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=group_s))
    patience = None if own_s is None else Patience(own_s, "own_s")
    own = torch.zeros(1)
    gathered = [torch.empty_like(own) for _ in range(rank.size)]
    rank.note("grouped")
    if rank.rank == ABSENT:
        rank.wait_for_parent()
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)
        return None
    try:
        wait_for_ranks(lambda: dist.all_gather(gathered, own, group=group, async_op=True), group, "come", patience)
    except PeerFault as error:
        rank.note("raised")
        return error.code, error.rank
    raise AssertionError("a gather without one of its ranks was complete")


@pytest.mark.parametrize("own_s", [None, LONG_S], ids=["as long as the group", "a time of its own"])
def test_a_rank_that_ends_is_lost(fresh_pool, own_s: float | None):
    pool = fresh_pool(3)
    pool.start(gather_without_a_rank, True, LONG_S, own_s)
    pool.await_notes("grouped", range(3))
    pool.release(ABSENT)
    results = pool.collect(dead=[ABSENT])
    # Whoever is not the first to notice may be told by the end of the one that was.
    assert {results[0][0], results[2][0]} == {PeerLost.code}
    assert {results[0][1], results[2][1]} <= {ABSENT, None}


@pytest.mark.parametrize(
    ("group_s", "own_s"),
    [
        pytest.param(LONG_S, SHORT_S, id="a time of its own"),
        pytest.param(SHORT_S, None, id="as long as the group"),
        pytest.param(SHORT_S, LONG_S, id="a group of less patience"),
    ],
)
def test_a_rank_that_stays_away_is_a_timeout(fresh_pool, group_s: float, own_s: float | None):
    pool = fresh_pool(2)
    pool.start(gather_without_a_rank, False, group_s, own_s)
    pool.await_notes("grouped", range(2))
    pool.await_notes("raised", [0])
    pool.release(ABSENT)
    assert pool.collect() == [(PeerTimeout.code, ABSENT), None]


def open_without_a_rank(rank: Rank, present: int) -> tuple[str, int | None, str] | None:
    """Code, rank and words of the error of a rank that opens an exchange with too few others."""
    dist.barrier(rank.group)
    if rank.rank >= present:
        rank.wait_for_parent()
        return None
    try:
        Exchange.create(rank.group, num_experts=rank.size, hidden=16, max_tokens=1, topk=1, bring_up_timeout_s=SHORT_S)
    except PeerFault as error:
        rank.note("raised")
        return error.code, error.rank, str(error)
    raise AssertionError("an exchange without one of its ranks was opened")


@pytest.mark.parametrize(("present", "named"), [(2, "rank 2 had"), (1, "ranks 1, 2 had")], ids=["one", "two"])
def test_an_exchange_that_ranks_do_not_open_names_them_and_the_bound(fresh_pool, present: int, named: str):
    pool = fresh_pool(3)
    pool.start(open_without_a_rank, present)
    pool.await_notes("raised", range(present))
    pool.release(*range(present, 3))
    for code, blamed, words in pool.collect()[:present]:
        assert (code, blamed) == (PeerTimeout.code, 2 if present == 2 else None)
        assert words.startswith(f"{named} not opened the exchange within 0.5 s (bring_up_timeout_s")
