"""The torch forms of SGLang's kernels for speculative decoding, on trees that are written out."""

import pytest
import torch

from sglang_ascend_moe.serving.host import speculation

TOPK = 2
SIZE = 5
# Drafted in three steps of two branches: places 0, 1 are children of the root, 2 to 5 those of the two kept then, and
# 6 to 9 those of the two kept of these. Kept are 0, 1, 2 (a child of 0) and 6 (a child of 2).
PARENTS = [-1, 0, 1, 2, 5]
PLACES = [0, 1, 2, 6]
# Of the tokens root, 0, 1, 2, 6 themselves.
ANCESTORS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 3, 4]]
DEPTHS = [0, 1, 1, 2, 3]
FIRST_CHILD = [1, 3, -1, 4, -1]
NEXT_SIBLING = [-1, 2, -1, -1, -1]


@pytest.fixture
def links() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of two such trees: where tokens lie, first children, next siblings."""
    places = torch.arange(2 * SIZE).view(2, SIZE)
    return places, torch.tensor([FIRST_CHILD] * 2), torch.tensor([NEXT_SIBLING] * 2)


def test_a_tree_is_built_of_what_was_drafted(links):
    mask = torch.ones(2 * SIZE * SIZE, dtype=torch.bool)
    positions = torch.empty(2 * SIZE, dtype=torch.long)
    written = torch.full((3, 2, SIZE), -1)
    speculation.build_trees(
        torch.tensor([PARENTS] * 2), torch.tensor([PLACES] * 2), torch.tensor([7, 100]), mask, positions, *written,
        TOPK, 3, SIZE, speculation.tree_mask_mode(),
    )  # fmt: skip
    expected = torch.tensor([[column in row for column in range(SIZE)] for row in ANCESTORS])
    assert torch.equal(mask.view(2, SIZE, SIZE), expected.expand(2, -1, -1))
    assert positions.tolist() == [length + depth for length in (7, 100) for depth in DEPTHS]
    assert all(torch.equal(found, known) for found, known in zip(written, links, strict=True))


def test_a_token_whose_parent_was_not_kept_is_reached_by_none():
    mask = torch.ones(16, dtype=torch.bool)
    written = torch.full((3, 1, 4), -1)
    positions = torch.empty(4, dtype=torch.long)
    kept = torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 2, 4]])
    speculation.build_trees(
        *kept, torch.tensor([5]), mask, positions, *written, TOPK, 2, 4, speculation.tree_mask_mode()
    )
    assert mask.view(4, 4).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert written.tolist() == [[[0, 1, 2, 3]], [[1, 2, -1, -1]], [[-1, -1, -1, -1]]]


def test_a_chain_is_a_tree_without_branches():
    mask = torch.ones(9, dtype=torch.bool)
    written = torch.full((3, 1, 3), -1)
    positions = torch.empty(3, dtype=torch.long)
    chain = torch.tensor([[-1, 0]]), torch.tensor([[0, 1]])
    speculation.build_trees(*chain, torch.tensor([5]), mask, positions, *written, 1, 2, 3, speculation.tree_mask_mode())
    assert torch.equal(mask.view(3, 3), torch.ones(3, 3, dtype=torch.bool).tril())
    assert positions.tolist() == [5, 6, 7]
    assert written.tolist() == [[[0, 1, 2]], [[1, 2, -1]], [[-1, -1, -1]]]


@pytest.mark.parametrize(
    ("wanted", "path", "following"),
    [
        pytest.param([10, 12, 0, 13, 99], [0, 1, 3, 4], [10, 12, 13, 99], id="all of a branch"),
        pytest.param([11, 0, 98, 0, 0], [0, 2], [11, 98], id="the second sibling"),
        pytest.param([77, 0, 0, 0, 0], [0], [77], id="nothing"),
    ],
)
def test_a_tree_is_followed_as_long_as_it_says_what_the_model_says(links, wanted, path, following):
    predicts = torch.zeros(2 * SIZE, dtype=torch.int32)
    accepted = torch.full((2, 4), -1, dtype=torch.int32)
    counts = torch.empty(2, dtype=torch.int32)
    tokens = torch.tensor([[1, 10, 11, 12, 13]] * 2)
    speculation.verify_greedily(predicts, accepted, counts, tokens, *links, torch.tensor([[0] * SIZE, wanted]), TOPK)
    assert counts.tolist() == [0, len(path) - 1]
    assert accepted[1].tolist() == [SIZE + token for token in path] + [-1] * (4 - len(path))
    assert predicts[accepted[1, : len(path)]].tolist() == following


@pytest.mark.parametrize(
    ("coins", "last", "path", "following"),
    [
        # The children of the root have 0.2 and 0.5, that of token 1 has 0.4.
        pytest.param([0.1, 0.3], 0.0, [0, 1, 3], [10, 12, 0], id="the first child, and its own"),
        pytest.param([0.6, 0.0], 0.0, [0, 2], [11, 0], id="the second child"),
        pytest.param([0.9, 0.0], 0.5, [0], [3], id="none, and what is left of the probabilities"),
        pytest.param([0.1, 0.5], 0.99, [0, 1], [10, 14], id="the first child, and not its own"),
    ],
)
def test_a_tree_is_followed_as_far_as_what_was_drawn_reaches(coins, last, path, following):
    probabilities = torch.zeros(1, SIZE, 16)
    probabilities[0, 0, [3, 10, 11]] = torch.tensor([0.3, 0.2, 0.5])
    probabilities[0, 1, [12, 14]] = torch.tensor([0.4, 0.6])
    probabilities[0, 2:, 0] = 1
    predicts = torch.zeros(SIZE, dtype=torch.int32)
    accepted = torch.full((1, 3), -1, dtype=torch.int32)
    counts = torch.empty(1, dtype=torch.int32)
    speculation.sample_along_trees(
        predicts=predicts, accept_index=accepted, accept_token_num=counts,
        candidates=torch.tensor([[1, 10, 11, 12, 13]]), retrive_index=torch.arange(SIZE)[None],
        retrive_next_token=torch.tensor([FIRST_CHILD]), retrive_next_sibling=torch.tensor([NEXT_SIBLING]),
        uniform_samples=torch.tensor([[*coins, 0.0, 0.0, 0.0]]),
        uniform_samples_for_final_sampling=torch.tensor([last]), target_probs=probabilities,
        draft_probs=torch.zeros_like(probabilities), deterministic=True,
    )  # fmt: skip
    assert counts.tolist() == [len(path) - 1]
    assert accepted[0, : len(path)].tolist() == path
    assert predicts[accepted[0, : len(path)]].tolist() == following


def test_sampled_trees_give_the_probabilities_of_the_model():
    """Whatever is drafted: the first token that follows the root is distributed as the model says."""
    draws, vocabulary = 20_000, 4
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    generator = torch.Generator().manual_seed(0)
    predicts = torch.zeros(draws * 3, dtype=torch.int32)
    accepted = torch.full((draws, 2), -1, dtype=torch.int32)
    speculation.sample_along_trees(
        predicts=predicts, accept_index=accepted, accept_token_num=torch.empty(draws, dtype=torch.int32),
        candidates=torch.tensor([[9, 2, 0]]).expand(draws, 3), retrive_index=torch.arange(draws * 3).view(draws, 3),
        retrive_next_token=torch.tensor([[1, -1, -1]]).expand(draws, 3),
        retrive_next_sibling=torch.tensor([[-1, 2, -1]]).expand(draws, 3),
        uniform_samples=torch.rand(draws, 3, generator=generator),
        uniform_samples_for_final_sampling=torch.rand(draws, generator=generator),
        target_probs=probabilities.expand(draws, 3, vocabulary),
    )  # fmt: skip
    found = predicts.view(draws, 3)[:, 0].bincount(minlength=vocabulary) / draws
    assert torch.allclose(found, probabilities, atol=0.02)


def test_the_likeliest_and_the_nucleus_are_kept_and_sum_up_to_one():
    rows = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)
    assert torch.allclose(
        speculation.keep_likeliest(rows, torch.tensor([2, 1 << 30])),
        torch.stack([torch.tensor([0, 0, 3 / 7, 4 / 7]), rows[1]]),
    )
    assert torch.allclose(
        speculation.keep_nucleus(rows, torch.tensor([0.5, 1.0])),
        torch.stack([torch.tensor([0, 0, 3 / 7, 4 / 7]), rows[1]]),
    )


def test_places_of_drafts_and_of_what_was_accepted():
    table = torch.arange(40, dtype=torch.int32).view(4, 10)
    requests, lengths = torch.tensor([2, 0]), torch.tensor([3, 5])
    drafted = torch.empty(8, dtype=torch.long)
    positions = torch.empty(4, dtype=torch.long)
    speculation.draft_places(requests, table, lengths, drafted, 2, 2, positions)
    assert drafted.tolist() == [23, 24, 25, 26, 5, 6, 7, 8]
    assert positions.tolist() == [3, 3, 5, 5]
    verified = speculation.verified_places(
        req_pool_indices=requests, req_to_token=table, start_offset=lengths, end_offset=lengths + 2, batch_size=2,
        draft_token_num=2, device="cpu",
    )  # fmt: skip
    assert verified.tolist() == [23, 24, 5, 6]
    leading, accepted = torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    speculation.leading_places(torch.tensor([1, 2]), verified, leading)
    speculation.accepted_places(torch.tensor([[1, -1], [2, 3]]), verified, accepted, 4)
    assert (leading.tolist(), accepted.tolist()) == ([23, 5, 6, 0], [24, 5, 6, 0])
    last = torch.empty(2, dtype=torch.int32)
    speculation.last_tokens(torch.tensor([7, 0, 8, 9]), torch.tensor([1, 2]), last, 2, 2)
    assert last.tolist() == [7, 9]
    speculation.reserve_places(requests, table, lengths, lengths + torch.tensor([2, 1]), torch.tensor([91, 92, 93]), 2)
    assert (table[2, 3:5].tolist(), table[0, 5].item()) == ([91, 92], 93)
