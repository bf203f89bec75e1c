"""Journals of ranks on several nodes are compared as those of one are, though no memory is shared."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.network import framed
from sglang_ascend_moe.serving.worker.journal import Journal, JournalMemory, State
from sglang_ascend_moe.serving.worker.journal_courier import Courier, counterparts

NODES = [0, 0, 1, 1]
RANKS = len(NODES)
KEPT = 4
LONG_S = 60.0


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([0, 0, 1, 1], [[2], [3], [0], [1]]),
        ([0, 1, 2], [[1, 2], [0, 2], [0, 1]]),
        ([0, 1, 0, 1], [[1], [0], [3], [2]]),
        ([0, 0], [[], []]),
    ],
    ids=["two-of-two", "three-of-one", "interleaved", "one-node"],
)
def test_each_rank_has_one_counterpart_on_every_other_node_who_has_it_too(nodes, expected):
    assert [counterparts(rank, nodes) for rank in range(len(nodes))] == expected


class Ranks:
    """Of two nodes: journals, and the connections that carry them."""

    def __init__(self) -> None:
        self.gone: list[int] = []
        self.ends = {rank: {} for rank in range(RANKS)}
        for rank in range(RANKS):
            for peer in counterparts(rank, NODES):
                if peer > rank:
                    self.ends[rank][peer], self.ends[peer][rank] = socket.socketpair()
        memories = []
        for _ in set(NODES):
            descriptor = os.memfd_create("journal")
            memories.append([JournalMemory(descriptor, RANKS, KEPT) for _ in range(2)])
            os.close(descriptor)
        self.journals = [
            Journal(
                memories[NODES[rank]][rank % 2],
                rank,
                set(range(RANKS)) - {rank},
                Courier(self.ends[rank], [far for far in range(RANKS) if NODES[far] != NODES[rank]], lambda: self.gone),
            )
            for rank in range(RANKS)
        ]

    def begin(self, requests: list[str]) -> None:
        for journal in self.journals:
            journal.begin(2, requests, 1)

    def see(self, rank: int, found: Callable[[Journal], bool]) -> None:
        """Waits until `found` is true of the journal of `rank`, whose node reads all the time."""
        until = time.monotonic() + LONG_S
        while not found(self.journals[rank]):
            assert time.monotonic() < until
            for journal in self.journals:
                journal.agrees()

    def close(self) -> None:
        for ends in self.ends.values():
            for end in ends.values():
                end.close()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.close()


def test_ranks_of_two_nodes_that_do_the_same_agree(ranks):
    for step in range(100):
        ranks.begin([f"request {step}"])
        assert all(journal.agrees() for journal in ranks.journals)
    for journal in ranks.journals:
        journal.sample(2, 1, bytes(8))
    assert [journal.difference() for journal in ranks.journals] == [None] * RANKS


@pytest.mark.parametrize("odd", range(RANKS))
def test_a_rank_that_does_something_else_is_seen_on_both_nodes_with_its_tokens(ranks, odd):
    ranks.begin(["request"])
    for rank, journal in enumerate(ranks.journals):
        journal.sample(2, 1, (9 if rank == odd else 7).to_bytes(8, "little"))
    for rank in range(RANKS):
        ranks.see(rank, lambda journal: not journal.agrees() and len(journal.difference().events) == RANKS)
        difference = ranks.journals[rank].difference()
        assert difference.tokens == {each: [9 if each == odd else 7] for each in range(RANKS)}


def test_how_a_rank_is_can_be_read_on_both_nodes(ranks):
    ranks.journals[3].mark(State.FAILED)
    expected = [State.SERVING] * 3 + [State.FAILED]
    for rank in range(RANKS):
        ranks.see(rank, lambda journal: [each.state for each in journal.statuses().values()] == expected)


def test_a_rank_of_another_node_has_ended_when_its_connection_has_whatever_its_process_number_means_here(ranks):
    here, no_process = os.getpid(), 1 << 30
    assert not ranks.journals[0].has_ended(2, no_process)
    assert not ranks.journals[0].has_ended(1, here)
    ranks.gone.append(3)
    assert ranks.journals[0].has_ended(3, here)
    # Of another pipeline stage nothing is known but what its connection says.
    assert not ranks.journals[0].has_ended(2, here)
    ranks.ends[2][0].close()
    assert ranks.journals[0].agrees()
    assert ranks.journals[0].has_ended(2, here)


def test_a_journal_goes_on_when_a_counterpart_is_gone(ranks):
    ranks.ends[2][0].close()
    for step in range(100):
        ranks.journals[0].begin(2, [f"request {step}"], 1)
        assert ranks.journals[0].agrees()


@pytest.mark.parametrize(
    "frame", [b"ab", (1 << 30).to_bytes(4, "little") + b"beyond"], ids=["no offset", "beyond the journal"]
)
def test_what_is_no_part_of_a_journal_is_refused_by_name(ranks, frame):
    ranks.ends[2][0].sendall(framed(frame))
    with pytest.raises(ProtocolMismatch, match="rank 2"):
        ranks.see(0, lambda _: False)
