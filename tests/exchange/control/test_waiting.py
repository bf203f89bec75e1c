"""A rank that does not come to a collective is told from one that has ended by the clock, whatever gloo says."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout
from sglang_ascend_moe.exchange.control.waiting import wait_for_ranks
from tests.exchange.pool import Rank

ABSENT = 1
SHORT_S = 0.5
LONG_S = 60.0


def gather_without_a_rank(rank: Rank, ends: bool, group_s: float, own_s: float | None) -> str | None:
    """The code of the error that the others meet when one rank ends, or stays away."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=group_s))
    own = torch.zeros(1)
    gathered = [torch.empty_like(own) for _ in range(rank.size)]
    rank.note("grouped")
    if rank.rank == ABSENT:
        rank.wait_for_parent()
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)
        return None
    try:
        wait_for_ranks(lambda: dist.all_gather(gathered, own, group=group, async_op=True), group, "came", own_s)
    except PeerFault as error:
        rank.note("raised")
        return error.code
    raise AssertionError("a gather without one of its ranks was complete")


@pytest.mark.parametrize("own_s", [None, LONG_S], ids=["as long as the group", "a time of its own"])
def test_a_rank_that_ends_is_lost(fresh_pool, own_s: float | None):
    pool = fresh_pool(3)
    pool.start(gather_without_a_rank, True, LONG_S, own_s)
    pool.await_notes("grouped", range(3))
    pool.release(ABSENT)
    results = pool.collect(dead=[ABSENT])
    assert [results[0], results[2]] == [PeerLost.code, PeerLost.code]


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
    assert pool.collect() == [PeerTimeout.code, None]
