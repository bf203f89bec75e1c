"""What an exception says of others is known by its type and by where it was raised, whatever its words."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import AscendMoeError, Corruption, PeerLost, PeerTimeout
from sglang_ascend_moe.serving.blame import blames_peer, collective_of
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


def name_collectives(rank: Rank) -> list[tuple[str, bool] | None]:
    """Names of the collectives that meet an ended peer, and whether the group is known."""
    if rank.rank == 1:
        os._exit(0)
    own = torch.zeros(2)

    def fail_in(fails: Callable[[], object]) -> tuple[str, bool] | None:
        with pytest.raises((RuntimeError, ValueError)) as caught:
            fails()
        found = collective_of(caught.value)
        return found and (found.name, found.group is rank.group)

    def replayed() -> None:
        group = rank.group
        work = group.allreduce([own])
        work.wait()

    def sent_before() -> None:
        # As SGLang keeps what a pipeline stage has sent.
        sent = [SimpleNamespace(work=rank.group.send([own], 1, 0), payload=own)]
        group = rank.group
        for p2p_work in sent:
            p2p_work.work.wait()
        assert group is rank.group

    return [
        fail_in(sent_before),
        fail_in(replayed),
        fail_in(lambda: dist.all_reduce(own, group=rank.group)),
        fail_in(lambda: dist.broadcast(own, src=1, group=rank.group)),
        fail_in(lambda: dist.all_gather_into_tensor(torch.zeros(4), own, group=rank.group)),
        fail_in(lambda: dist.reduce_scatter_tensor(torch.zeros(1), own, group=rank.group)),
        fail_in(lambda: dist.all_gather_object([None, None], own, group=rank.group)),
        fail_in(lambda: raise_(ValueError("its own"))),
    ]


def test_a_collective_that_failed_is_named_as_it_was_called(fresh_pool):
    pool = fresh_pool(2)
    pool.start(name_collectives)
    names = [
        "sent_before",
        "replayed",
        "all_reduce",
        "broadcast",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "all_gather_object",
    ]
    assert pool.collect(dead=[1])[0] == [*((name, True) for name in names), None]


def test_by_the_collective_that_raised_it(fresh_pool):
    pool = fresh_pool(2)
    pool.start(meet_an_ended_peer)
    assert pool.collect(dead=[1])[0] == [True, True]
