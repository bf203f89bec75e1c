"""Drafts on the emulated NPU: trees, how far they are right, and the slots of their keys."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.npu.operators import modules, speculation
from tests.npu.operators.refusals import NotEmulated, WrongArguments


@pytest.fixture(scope="module", autouse=True)
def operators():
    modules.install_operators()


class Trees(NamedTuple):
    mask: Tensor
    positions: Tensor
    places: Tensor
    first_child: Tensor
    next_sibling: Tensor


def build(parents: Tensor, chosen: Tensor, before: list[int], topk: int, depth: int, mode: int = 0) -> Trees:
    """Trees of requests with `before` tokens; what is not written stays -7, and True in the mask."""
    requests, size = len(before), chosen.shape[1] + 1
    lengths = torch.tensor(before, dtype=torch.int64)
    mask = torch.ones(int(lengths.sum()) * size + requests * size * size, dtype=torch.bool)
    positions = torch.full((requests * size,), -7)
    links = torch.full((3, requests, size), -7)
    torch.ops.npu.build_tree_kernel_efficient(
        parents, chosen, lengths, mask, positions, *links, topk, depth, size, mode
    )
    return Trees(mask, positions.view(requests, size), *links)


def chains(requests: int, steps: int) -> tuple[Tensor, Tensor]:
    """As SGLang makes them for a branch of one."""
    return torch.arange(-1, steps - 1).repeat(requests, 1), torch.arange(steps).repeat(requests, 1)


def seen(trees: Trees, before: list[int]) -> list[list[list[bool]]]:
    """Of each tree the columns of the tree; those of the tokens before it have to be as they were."""
    size, begun, parts = trees.positions.shape[1], 0, []
    for length in before:
        rows = trees.mask[begun : begun + size * (length + size)].view(size, -1)
        assert rows[:, :length].all()
        parts.append(rows[:, length:].tolist())
        begun += size * (length + size)
    return parts


@pytest.mark.parametrize("before", [[5], [7, 1, 3]], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_chain_has_one_child_each_and_sees_what_is_before(steps, before):
    parents, chosen = chains(len(before), steps)
    trees = build(parents[:, : steps if steps > 1 else 0], chosen, before, 1, steps)
    size = steps + 1
    assert trees.positions.tolist() == [[length + depth for depth in range(size)] for length in before]
    assert trees.places.tolist() == [[size * row + token for token in range(size)] for row in range(len(before))]
    assert trees.first_child.tolist() == [[*range(1, size), -1]] * len(before)
    assert trees.next_sibling.tolist() == [[-1] * size] * len(before)
    assert seen(trees, before) == [torch.ones(size, size).tril().bool().tolist()] * len(before)


def test_a_tree_links_children_and_siblings_and_branches_do_not_see_each_other():
    """Two branches of two: behind the root lie 1 and 2, behind 1 lie 3 and 4."""
    parents, chosen = torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, 2, 3]])
    trees = build(parents, chosen, [6], 2, 2)
    assert trees.first_child.tolist() == [[1, 3, -1, -1, -1]]
    assert trees.next_sibling.tolist() == [[-1, 2, -1, 4, -1]]
    assert trees.positions.tolist() == [[6, 7, 7, 8, 8]]
    (rows,) = seen(trees, [6])
    assert [[column for column, visible in enumerate(row) if visible] for row in rows] == [
        [0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4],
    ]  # fmt: skip


def test_other_masks_are_not_there():
    with pytest.raises(NotEmulated, match="build_tree_kernel_efficient with tree_mask_mode=1"):
        build(*chains(1, 2), [4], 1, 2, mode=1)


def test_parents_of_another_width_would_be_read_wrongly():
    with pytest.raises(WrongArguments, match="parents"):
        build(*chains(2, 3), [4, 4], 1, 2)


def verify(drafted: list[list[int]], wanted: list[list[int]], steps: int | None = None) -> list[list[list[int]]]:
    """Accepted places, how many were drafted, and what follows each place; -1 where nothing was written."""
    candidates, target = torch.tensor(drafted), torch.tensor(wanted)
    requests, size = candidates.shape
    accepted = torch.full((requests, size if steps is None else steps + 1), -1, dtype=torch.int32)
    number, following = torch.zeros(requests, dtype=torch.int32), torch.full((requests * size,), -1, dtype=torch.int32)
    places = torch.arange(requests * size).view(requests, size)
    links = torch.full((requests, size), -1)
    modules.sgl_kernel_npu()["sgl_kernel_npu.sample.verify_tree_greedy"].verify_tree_greedy(
        predicts=following, accept_index=accepted, accept_token_num=number, candidates=candidates,
        retrive_index=places, retrive_next_token=links, retrive_next_sibling=links, target_predict=target,
    )  # fmt: skip
    return [accepted.tolist(), [number.tolist()], following.view(requests, size).tolist()]


def test_a_chain_is_accepted_up_to_the_first_token_that_is_another():
    accepted, [number], following = verify(
        [[9, 1, 2, 3], [9, 1, 7, 3], [9, 8, 2, 3]], [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]
    )
    assert accepted == [[0, 1, 2, 3], [4, 5, -1, -1], [8, -1, -1, -1]]
    assert number == [3, 1, 0]
    assert following == [[1, 2, 3, 4], [1, 2, -1, -1], [1, -1, -1, -1]]


def test_paths_shorter_than_trees_would_be_written_wrongly():
    with pytest.raises(NotEmulated, match="verify_tree_greedy with paths of 2 in trees of 3"):
        verify([[9, 1, 2]], [[1, 2, 3]], steps=1)


# Numbers that are drawn for the two drafted tokens and the last one, and what is accepted. The model puts 0.6 on token
# 1 and 0.4 on 2.
SAMPLED = {
    "both": ([0.5, 0.59, 0.0], 0.99, [0, 1, 2], [1, 1, 2]),
    "the first": ([0.5, 0.7, 0.0], 0.0, [0, 1, -1], [1, 2, -1]),
    "none": ([0.7, 0.5, 0.0], 0.5, [0, -1, -1], [2, -1, -1]),
}


@pytest.mark.parametrize(("coins", "last", "accepted", "following"), SAMPLED.values(), ids=SAMPLED)
def test_a_sampled_chain_is_accepted_by_the_numbers_that_are_drawn(coins, last, accepted, following):
    """What is rejected is not drawn as the next token."""
    found, number = torch.full((1, 3), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    predicts = torch.full((3,), -1, dtype=torch.int32)
    probabilities = torch.tensor([0.0, 0.6, 0.4]).expand(1, 3, 3).contiguous()
    modules.sgl_kernel_npu()["sgl_kernel_npu.sample"].tree_speculative_sampling_target_only(
        predicts=predicts, accept_index=found, accept_token_num=number, candidates=torch.tensor([[9, 1, 1]]),
        retrive_index=torch.tensor([[0, 1, 2]]), retrive_next_token=torch.tensor([[1, 2, -1]]),
        retrive_next_sibling=torch.full((1, 3), -1), uniform_samples=torch.tensor([coins]),
        uniform_samples_for_final_sampling=torch.tensor([last]), target_probs=probabilities,
        draft_probs=torch.zeros_like(probabilities), threshold_single=1.0, threshold_acc=1.0,
    )  # fmt: skip
    assert found.tolist() == [accepted]
    assert predicts.tolist() == following
    assert number.tolist() == [sum(place >= 0 for place in accepted) - 1]


def test_the_likeliest_tokens_are_kept_with_a_sum_of_one():
    probabilities = torch.tensor([[0.5, 0.125, 0.25, 0.125]] * 2)
    few = speculation.top_k_renorm_prob(probabilities, torch.tensor([1, 2]))
    assert torch.equal(few, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.25, 0.0]]) / torch.tensor([[1.0], [0.75]]))
    nucleus = speculation.top_p_renorm_prob(probabilities, torch.tensor([0.4, 1.0]))
    assert nucleus.tolist() == [[1.0, 0.0, 0.0, 0.0], probabilities[1].tolist()]


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_slots_between_the_offsets_follow_each_other(index):
    pool = torch.arange(40, dtype=torch.int32).view(4, 10)
    out = torch.full((5,), -1, dtype=torch.int32)
    found = torch.ops.npu.cache_loc_update(
        torch.tensor([2, 0], dtype=index), pool, torch.tensor([1, 7]), torch.tensor([4, 9]), out
    )
    assert found.data_ptr() == out.data_ptr()
    assert out.tolist() == [21, 22, 23, 7, 8]


def test_slots_are_of_32_bits_and_not_many_of_a_request():
    pool, out = torch.zeros(1, 40, dtype=torch.int32), torch.zeros(20, dtype=torch.int32)
    request, start, end = torch.tensor([0]), torch.tensor([0]), torch.tensor([20])
    with pytest.raises(WrongArguments, match="20 slots of a request, more than 16"):
        torch.ops.npu.cache_loc_update(request, pool, start, end, out)
    with pytest.raises(WrongArguments, match=r"out_cache_loc is torch.int64"):
        torch.ops.npu.cache_loc_update(request, pool, start, start, out.long())
