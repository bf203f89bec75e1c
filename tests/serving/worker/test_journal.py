"""Ranks that begin or sample something else than those they share their attention with are found, and told apart."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

import pytest

from sglang_ascend_moe.serving.worker.journal import EVENTS, Journal, JournalMemory, State, describe

RANKS = 3
KEPT = 4
PREFILL, DECODE = 1, 2
PHASES = {PREFILL: "extend", DECODE: "decode"}


@pytest.fixture
def journals() -> Iterator[list[Journal]]:
    """Those of three ranks, each of which maps the memory for itself."""
    descriptor = os.memfd_create("journal")
    yield [
        Journal(JournalMemory(descriptor, RANKS, KEPT), rank, [peer for peer in range(RANKS) if peer != rank])
        for rank in range(RANKS)
    ]
    os.close(descriptor)


def ids(*tokens: int) -> bytes:
    return array("q", tokens).tobytes()


def step(journal: Journal, tokens: bytes, names: tuple[str, ...] = ("a", "b")) -> None:
    journal.begin(DECODE, names, len(names))
    journal.sample(DECODE, len(names), tokens)


def told(journal: Journal) -> str:
    found = journal.difference()
    assert found is not None
    return describe(found, PHASES)


def test_ranks_that_do_the_same_agree_however_far_each_has_come(journals):
    for number in range(3 * EVENTS):
        for journal in journals:
            step(journal, ids(number, 5))
            assert journal.agrees()
    assert [journal.difference() for journal in journals] == [None] * RANKS
    assert [journal.step for journal in journals] == [3 * EVENTS] * RANKS


def test_nothing_is_said_before_a_peer_has_come_as_far(journals):
    step(journals[0], ids(1, 2))
    assert journals[0].agrees()
    assert journals[1].agrees()
    journals[1].begin(DECODE, ("a", "b"), 2)
    assert journals[1].agrees()


def test_another_token_is_seen_by_whoever_comes_second_and_then_by_all(journals):
    for journal in journals:
        step(journal, ids(1, 2))
    step(journals[0], ids(3, 4))
    step(journals[1], ids(3, 9))
    assert not journals[1].agrees()
    assert not journals[0].agrees()
    step(journals[2], ids(3, 4))
    assert not journals[2].agrees()
    words = (
        "in step 2 (decode of 2 requests), request 1 of the batch: rank 1 sampled token 9, ranks 0, 2 sampled token 4"
    )
    assert [told(journal) for journal in journals] == [words] * RANKS


def test_a_difference_is_found_when_ranks_have_gone_on_alike(journals):
    for journal, token in zip(journals, (4, 9, 4), strict=True):
        step(journal, ids(3, token))
    for journal in journals:
        step(journal, ids(5, 5))
    assert not journals[0].agrees()
    assert told(journals[0]).startswith("in step 1 (decode of 2 requests), request 1 of the batch: rank 1 sampled")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(
            lambda journal: journal.begin(DECODE, ("a",), 1),
            "rank 1 began step 1 (decode of 1 requests, 1 tokens), "
            "ranks 0, 2 began step 1 (decode of 2 requests, 2 tokens)",
            id="fewer requests",
        ),
        pytest.param(
            lambda journal: journal.begin(PREFILL, ("a", "b"), 9),
            "rank 1 began step 1 (extend of 2 requests, 9 tokens), "
            "ranks 0, 2 began step 1 (decode of 2 requests, 2 tokens)",
            id="another phase",
        ),
        pytest.param(
            lambda journal: journal.begin(DECODE, ("b", "a"), 2),
            "in step 1 (decode of 2 requests) the requests differ: rank 1 ",
            id="another order",
        ),
    ],
)
def test_another_batch_is_named_with_both_values(journals, other, words: str):
    for journal in (journals[0], journals[2]):
        journal.begin(DECODE, ("a", "b"), 2)
    other(journals[1])
    assert not journals[1].agrees()
    assert told(journals[0]).startswith(words)


def test_tokens_that_are_not_kept_are_compared(journals):
    for journal, last in zip(journals, (1, 2, 1), strict=True):
        step(journal, ids(*range(KEPT), last), tuple("abcde"))
    assert not journals[0].agrees()
    assert told(journals[0]).startswith("in step 1 (decode of 5 requests) the sampled tokens differ: rank 1 ")


def test_ranks_that_share_nothing_are_not_compared():
    descriptor = os.memfd_create("journal")
    alone = [Journal(JournalMemory(descriptor, RANKS, KEPT), rank, []) for rank in range(RANKS)]
    os.close(descriptor)
    for journal in alone:
        step(journal, ids(journal.rank, 1))
    assert [journal.agrees() for journal in alone] == [True] * RANKS
    assert [journal.difference() for journal in alone] == [None] * RANKS


def test_an_event_that_is_being_written_is_not_there_yet(journals):
    memory = journals[1]._memory
    step(journals[0], ids(3, 4))
    step(journals[1], ids(3, 9))
    assert not journals[0].agrees()
    at = memory.start(1) + memory.event_place(2)
    memory.map[at + 8] ^= 1
    assert journals[0].agrees()


def test_how_each_rank_is_can_be_read_by_all(journals):
    journals[1].mark(State.FAILED)
    journals[2].mark(State.GAVE_UP)
    expected = [State.SERVING, State.FAILED, State.GAVE_UP]
    assert [status.state for status in journals[0].statuses().values()] == expected
    assert {status.process for status in journals[0].statuses().values()} == {os.getpid()}
