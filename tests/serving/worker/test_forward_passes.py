"""Ranks that would make other exchanges than the others are found, and both forward passes are named."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.serving.worker.forward_passes import ForwardPasses
from sglang_ascend_moe.serving.worker.journal import Journal, JournalMemory
from sglang_ascend_moe.serving.worker.lockstep import Lockstep


@pytest.fixture
def ranks() -> Iterator[list[Lockstep]]:
    """Two ranks that share no attention, and so no batches."""
    batches, passes = os.memfd_create("batches"), os.memfd_create("passes")
    yield [
        Lockstep(
            Journal(JournalMemory(batches, 2, 0), rank, []),
            {},
            None,
            ForwardPasses(Journal(JournalMemory(passes, 2, 0), rank, [1 - rank])),
        )
        for rank in range(2)
    ]
    os.close(batches)
    os.close(passes)


def speculate(rank: Lockstep) -> None:
    for drafts in (True, False, True):
        rank.pass_forward(drafts=drafts, prefill=False)


def test_ranks_that_take_the_same_passes_agree_however_far_each_has_come(ranks):
    first, second = ranks
    for _ in range(40):
        speculate(first)
    for _ in range(40):
        speculate(second)
    first.compare()


@pytest.mark.parametrize(
    ("drafts", "prefill", "words"),
    [
        pytest.param(True, False, "rank 1 began the draft model, decode, in its batch as forward pass 2", id="draft"),
        pytest.param(False, True, "rank 1 began the model, prefill, in its batch as forward pass 2", id="phase"),
    ],
)
def test_another_pass_is_named_by_both(ranks, drafts, prefill, words):
    first, second = ranks
    for rank in ranks:
        rank.pass_forward(drafts=True, prefill=False)
    first.pass_forward(drafts=False, prefill=False)
    with pytest.raises(ProtocolMismatch) as found:
        second.pass_forward(drafts=drafts, prefill=prefill)
    with pytest.raises(ProtocolMismatch) as told:
        first.compare()
    assert str(found.value) == str(told.value)
    assert "rank 0 began the model, decode, in its batch as forward pass 2" in str(found.value)
    assert words in str(found.value)


def test_a_batch_that_ends_earlier_on_one_rank_is_named(ranks):
    first, second = ranks
    for rank in ranks:
        rank.pass_forward(drafts=True, prefill=False)
    # A rank without requests has a batch all the same.
    first.sample(SimpleNamespace(forward_mode=9, reqs=[]), SimpleNamespace(next_token_ids=None))
    with pytest.raises(ProtocolMismatch, match="rank 0 ended its batch after forward pass 1"):
        second.pass_forward(drafts=False, prefill=False)
