"""Attention over trees and branches is that of each token over what it may see, one by one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ascend_moe.serving.host import tree_attention

HEADS, SHARED, HEAD, SLOTS = 4, 2, 8, 64
TREE = [[0], [0, 1], [0, 2], [0, 1, 3]]


@pytest.fixture
def backend() -> Any:
    """One with random keys and values, and NaN where no request has any."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, SLOTS, SHARED, HEAD, generator=generator, dtype=torch.float64)
    keys[SLOTS // 2 :] = values[SLOTS // 2 :] = float("nan")
    pool = SimpleNamespace(get_key_buffer=lambda _layer: keys, get_value_buffer=lambda _layer: values)
    table = torch.full((3, 20), SLOTS - 1, dtype=torch.int32)
    table[0, :9], table[2, :14] = torch.arange(9, dtype=torch.int32), torch.arange(9, 23, dtype=torch.int32)
    return SimpleNamespace(token_to_kv_pool=pool, table=table)


LAYER: Any = SimpleNamespace(
    layer_id=0, tp_q_head_num=HEADS, tp_k_head_num=SHARED, qk_head_dim=HEAD, v_head_dim=HEAD, scaling=HEAD**-0.5
)


def one_by_one(backend: Any, q: torch.Tensor, seen: list[list[int]]) -> torch.Tensor:
    """What each row of `q` gets from the slots that it sees."""
    pool = backend.token_to_kv_pool
    rows = []
    for row, slots in zip(q.view(-1, HEADS, HEAD), seen, strict=True):
        caches = pool.get_key_buffer(0), pool.get_value_buffer(0)
        keys, values = (cache[slots].repeat_interleave(HEADS // SHARED, 1) for cache in caches)
        weights = (torch.einsum("hd,shd->hs", row, keys) * LAYER.scaling).softmax(-1)
        rows.append(torch.einsum("hs,shd->hd", weights, values).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("length", [14, 16], ids=["as long as the longest request", "padded"])
def test_a_token_of_a_tree_sees_the_text_before_and_its_ancestors(backend, length):
    requests, prefixes = torch.tensor([2, 0]), torch.tensor([10, 5])
    tree = torch.tensor([[column in row for column in range(4)] for row in TREE])
    visible = tree_attention.trees_of(backend.table, requests, prefixes, tree.expand(2, 4, 4), length)
    # Two rows of padding.
    q = torch.randn(10, HEADS * HEAD, dtype=torch.float64)
    found = tree_attention.attend(backend, q, LAYER, visible)
    seen = [
        backend.table[request, [*range(prefix), *(prefix + token for token in row)]].tolist()
        for request, prefix in ((2, 10), (0, 5))
        for row in TREE
    ]
    assert torch.allclose(found[:8], one_by_one(backend, q[:8], seen))
    assert torch.equal(found[8:], torch.zeros(2, HEADS * HEAD, dtype=torch.float64))


@pytest.mark.parametrize("length", [12, 16], ids=["as long as the longest request", "padded"])
def test_a_branch_of_a_draft_sees_the_text_before_and_its_own_tokens(backend, length):
    requests, prefixes = torch.tensor([2, 0]), torch.tensor([10, 5])
    visible = tree_attention.branches_of(
        backend.table, requests, prefixes, branches=2, stride=2, drafted=2, length=length
    )
    q = torch.randn(4, HEADS * HEAD, dtype=torch.float64)
    seen = [
        backend.table[request, [*range(prefix), prefix + 2 * branch, prefix + 2 * branch + 1]].tolist()
        for request, prefix in ((2, 10), (0, 5))
        for branch in range(2)
    ]
    assert torch.allclose(tree_attention.attend(backend, q, LAYER, visible), one_by_one(backend, q, seen))
