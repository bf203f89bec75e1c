"""A failed collective of SGLang names what it was and who did not come; ranks that drift apart say so instead."""

from __future__ import annotations

import os
import signal
from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.serving.worker import group_waits
from sglang_ascend_moe.serving.worker.journal import Journal, JournalMemory
from sglang_ascend_moe.serving.worker.lockstep import Lockstep
from tests.exchange.conftest import fresh_pool
from tests.exchange.pool import Rank

__all__ = ["fresh_pool"]

CULPRIT = 1
SHORT_S = 2.0
LONG_S = 60.0
TOKENS = 4


@pytest.fixture
def memory() -> Iterator[str]:
    """The path of the memory of a journal."""
    descriptor = os.memfd_create("journal")
    yield f"/proc/{os.getpid()}/fd/{descriptor}"
    os.close(descriptor)


def lockstep(rank: Rank, memory: str, timeout_s: float) -> Lockstep:
    descriptor = os.open(memory, os.O_RDWR)
    journal = Journal(JournalMemory(descriptor, rank.size, TOKENS), rank.rank, set(range(rank.size)) - {rank.rank})
    os.close(descriptor)
    # Ranks begin together: afterwards the group is impatient.
    dist.barrier(group=rank.group)
    return Lockstep(journal, {2: "decode"}, group_waits.bound([rank.group], timeout_s))


def batch(requests: int = 2) -> Any:
    """What is read of a decode batch of SGLang."""

    class Mode(int):
        def is_extend(self) -> bool:
            return False

    return SimpleNamespace(forward_mode=Mode(2), reqs=[SimpleNamespace(rid=str(n)) for n in range(requests)])


def result(*tokens: int) -> Any:
    return SimpleNamespace(next_token_ids=torch.tensor(tokens))


def meet_without_a_rank(rank: Rank, memory: str, timeout_s: float, how: str) -> tuple[str, int | None, str] | None:
    """Type, rank and words of what a rank raises when another does not come to a collective."""
    own = lockstep(rank, memory, timeout_s)
    own.begin(batch())
    if rank.rank == CULPRIT:
        # Until the others have left the barrier, in which they would miss it as well.
        rank.wait_for_parent()
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises":
            with pytest.raises(ValueError, match="own"), own:
                raise ValueError("its own")
            os._exit(1)
        return None
    rank.note("begun")
    try:
        with own:
            dist.all_reduce(torch.zeros(1), group=rank.group)
    except PeerFault as error:
        rank.note("raised")
        return type(error).__name__, error.rank, str(error)
    raise AssertionError("a collective without one of its ranks was complete")


@pytest.mark.parametrize("how", ["is killed", "raises"])
def test_a_rank_that_ends_is_lost_by_name(fresh_pool, memory: str, how: str):
    pool = fresh_pool(3)
    pool.start(meet_without_a_rank, memory, LONG_S, how)
    pool.await_notes("begun", [0, 2])
    pool.release(CULPRIT)
    found = pool.collect(dead=[CULPRIT])
    for kind, rank, words in (found[0], found[2]):
        assert (kind, rank) == (PeerLost.__name__, CULPRIT)
        assert "before all_reduce of SGLang's group default_pg (ranks 0, 1, 2), step 1" in words


def test_a_rank_that_stays_away_is_a_timeout_by_name(fresh_pool, memory: str):
    pool = fresh_pool(3)
    pool.start(meet_without_a_rank, memory, SHORT_S, "stays away")
    pool.await_notes("begun", [0, 2])
    pool.await_notes("raised", [0, 2])
    pool.release(CULPRIT)
    found = pool.collect()
    assert [found[rank][:2] for rank in (0, 2)] == [(PeerTimeout.__name__, CULPRIT)] * 2
    assert found[0][2].startswith("rank 1 had not come to all_reduce of SGLang's group default_pg (ranks 0, 1, 2)")
    assert "(--ascend-moe-timeout" in found[0][2]


def drift_apart(rank: Rank, memory: str, requests: int) -> str:
    """The words of the `ProtocolMismatch` with which a rank ends that samples the end, or waits for one that did."""
    own = lockstep(rank, memory, SHORT_S)
    try:
        with own:
            own.begin(batch())
            own.sample(batch(), result(3, 7 if rank.rank == CULPRIT else 4))
            if rank.rank == CULPRIT:
                rank.wait_for_parent()
                own.compare()
            own.begin(batch(requests))
            rank.note("waits")
            dist.all_reduce(torch.zeros(1), group=rank.group)
    except ProtocolMismatch as error:
        return str(error)
    raise AssertionError("ranks that drifted apart went on")


def test_a_rank_that_samples_another_token_is_named_by_all(fresh_pool, memory: str):
    pool = fresh_pool(2)
    pool.start(drift_apart, memory, 2)
    pool.release(CULPRIT)
    words = pool.collect()
    assert words[0] == words[1]
    assert (
        "in step 1 (decode of 2 requests), request 1 of the batch: rank 0 sampled token 4, rank 1 sampled token 7"
        in words[0]
    )


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(torch.tensor([1, 2], dtype=torch.int32), id="int32"),
        pytest.param(torch.tensor([1, 2]), id="int64"),
        pytest.param([1, 2], id="a list"),
    ],
)
def test_tokens_are_read_whatever_holds_them(tokens: Any):
    descriptor = os.memfd_create("journal")
    journal = Journal(JournalMemory(descriptor, 1, TOKENS), 0, [])
    other = Journal(JournalMemory(descriptor, 1, TOKENS), 0, [])
    os.close(descriptor)
    Lockstep(journal, {}, None).sample(batch(), SimpleNamespace(next_token_ids=tokens))
    other.sample(2, 2, array("q", [1, 2]).tobytes())
    assert other.agrees()
    assert journal._history == other._history


def test_a_result_without_tokens_is_compared_by_its_batch():
    descriptor = os.memfd_create("journal")
    own, peer = (Journal(JournalMemory(descriptor, 2, TOKENS), rank, [1 - rank]) for rank in range(2))
    os.close(descriptor)
    Lockstep(own, {}, None).sample(batch(), SimpleNamespace(embeddings=None))
    Lockstep(peer, {}, None).sample(batch(), SimpleNamespace(next_token_ids=None))
    assert own.agrees()
