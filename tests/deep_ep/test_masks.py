"""A rank that has ended is masked on the others, and stays so."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from sglang_ascend_moe.errors import PeerLost
from tests.exchange.pool import Rank

from .low_latency_calls import SCENARIO, Case, open_buffer


def outlive_a_peer(rank: Rank) -> list[list[int]] | None:
    buffer = open_buffer(rank, SCENARIO)
    x, ids, _ = Case().inputs(rank.size)[rank.rank]
    options = SCENARIO.options(rank.size)
    arguments = (x, ids, options["max_tokens"], options["num_experts"])
    buffer.low_latency_dispatch(*arguments)
    status = torch.full((rank.size,), 7, dtype=torch.int32)
    buffer.low_latency_query_mask_buffer(status)
    seen = [status.tolist()]
    rank.note("seen")
    if rank.rank == 1:
        rank.wait_for_parent()
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerLost, match="rank 1"):
        buffer.low_latency_dispatch(*arguments)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, options["num_experts"])
    with pytest.raises(PeerLost):
        buffer.dispatch(x, None, per_rank, None, in_rank, per_expert)
    buffer.low_latency_query_mask_buffer(status)
    seen.append(status.tolist())
    buffer.low_latency_update_mask_buffer(1, True)
    with pytest.raises(PeerLost, match="rank 1"):
        buffer.low_latency_update_mask_buffer(1, False)
    with pytest.raises(PeerLost, match="rank 1"):
        buffer.low_latency_clean_mask_buffer()
    return seen


def test_a_rank_that_has_ended_is_masked(fresh_pool):
    pool = fresh_pool(3)
    pool.start(outlive_a_peer)
    pool.await_notes("seen", range(3))
    pool.release(1)
    seen = pool.collect(dead=[1])
    assert [seen[0], seen[2]] == [[[0, 0, 0], [0, 1, 0]]] * 2
