"""What an exception says of others is known by its type and by where it was raised, whatever its words."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import AscendMoeError, Corruption, PeerLost, PeerTimeout
from sglang_ascend_moe.serving.blame import blames_peer
from tests.exchange.conftest import fresh_pool
from tests.exchange.pool import Rank

__all__ = ["fresh_pool"]


def blame_of(fails: Callable[[], object]) -> bool:
    with pytest.raises((AscendMoeError, RuntimeError, ValueError, OSError, EOFError)) as caught:
        fails()
    return blames_peer(caught.value)


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        PeerLost("rank 1 has died", 1), PeerTimeout("rank 1 is late", 1), EOFError(), BrokenPipeError(),
        ConnectionResetError(), dist.DistNetworkError("no store"), dist.DistStoreError("no key"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_by_its_type(error: Exception):
    assert blame_of(lambda: raise_(error))


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param(lambda: raise_(RuntimeError("Connection closed by peer")), id="words about a peer"),
        pytest.param(lambda: torch.ones(2) @ torch.ones(3), id="an operator"),
        pytest.param(lambda: raise_(Corruption("row 1 from rank 1 is not what was written")), id="a wrong row"),
        pytest.param(lambda: dist.new_group([7], timeout=timedelta(seconds=-1)), id="a wrong argument"),
    ],
)
def test_what_a_process_did_itself_blames_nobody(fails: Callable[[], object]):
    assert not blame_of(fails)


def meet_an_ended_peer(rank: Rank) -> list[bool]:
    if rank.rank == 1:
        os._exit(0)
    own = torch.zeros(1)

    def gather() -> None:
        dist.all_gather([torch.empty_like(own) for _ in range(rank.size)], own, group=rank.group)

    def receive() -> None:
        # As SGLang waits while experts move.
        for work in dist.batch_isend_irecv([dist.P2POp(dist.irecv, own, 1)]):
            work.wait()

    return [blame_of(fails) for fails in (gather, receive)]


def test_by_the_collective_that_raised_it(fresh_pool):
    pool = fresh_pool(2)
    pool.start(meet_an_ended_peer)
    assert pool.collect(dead=[1])[0] == [True, True]
