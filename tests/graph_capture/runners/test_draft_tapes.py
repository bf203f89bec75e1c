"""Steps of speculative decoding in tapes: a replay gives what the step itself gives for other trees and lengths."""

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.speculative import spec_utils
from sglang.srt.speculative.eagle_utils import organize_draft_results
from torch import Tensor

from sglang_ascend_moe.graph_capture import step_outputs
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.guard import check
from sglang_ascend_moe.graph_capture.tape import record
from sglang_ascend_moe.serving.host import tree_attention

HEADS, SHARED, HEAD, SLOTS, LENGTH = 4, 2, 8, 60, 16
LAYER: Any = SimpleNamespace(
    layer_id=0, tp_q_head_num=HEADS, tp_k_head_num=SHARED, qk_head_dim=HEAD, v_head_dim=HEAD, scaling=HEAD**-0.5
)
HIDDEN, VOCABULARY, STEPS = 8, 16, 3


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Cache:
    """Keys and values of three requests, two of which are in the batch."""

    def __init__(self) -> None:
        keys, values = torch.randn(2, SLOTS, SHARED, HEAD)
        self.token_to_kv_pool = SimpleNamespace(get_key_buffer=lambda _: keys, get_value_buffer=lambda _: values)
        self.table = torch.arange(SLOTS, dtype=torch.int32).view(3, -1)
        self.requests, self.prefixes = torch.tensor([2, 0]), torch.tensor([10, 5])
        self.q = torch.randn(8, HEADS * HEAD)
        self.trees = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, 4, 4).contiguous()

    def verify(self) -> dict[str, Tensor]:
        visible = tree_attention.trees_of(self.table, self.requests, self.prefixes, self.trees, LENGTH)
        return {"attended": tree_attention.attend(self, self.q, LAYER, visible)}

    def draft(self) -> dict[str, Tensor]:
        visible = tree_attention.branches_of(self.table, self.requests, self.prefixes, 4, 2, 2, LENGTH)
        return {"attended": tree_attention.attend(self, self.q, LAYER, visible)}


@pytest.mark.parametrize("step", [Cache.verify, Cache.draft], ids=["verify", "draft"])
def test_attention_over_trees_replays_with_other_trees_and_lengths(step: Callable[[Cache], dict[str, Tensor]]):
    cache = Cache()
    check(lambda: step(cache))
    tape = record(lambda: step(cache), Arena())
    cache.prefixes.copy_(torch.tensor([7, 3]))
    cache.trees[:, 3, 2] = False
    assert torch.equal(tape.replay()["attended"], step(cache)["attended"])


@pytest.mark.parametrize("branches", [1, 2], ids=["chain", "tree"])
def test_the_choice_of_drafts_replays(branches: int, monkeypatch: pytest.MonkeyPatch):
    # As the hook of the host has it.
    later = inspect.unwrap(spec_utils._select_top_k_tokens_later)
    monkeypatch.setattr(spec_utils, "_select_top_k_tokens_later", later)
    probabilities = torch.rand(2, branches)
    tokens, hidden = torch.randint(0, VOCABULARY, (2, branches)), torch.randn(2, HIDDEN)
    head = torch.randn(HIDDEN, VOCABULARY)

    def draft() -> tuple[Tensor, ...]:
        likely, chosen, rows, scores = probabilities, tokens, hidden, None
        tree: list[Any] = []
        for step in range(STEPS):
            ids, rows, scores, branch = spec_utils.select_top_k_tokens(step, likely, chosen, rows, scores, branches)
            tree.append(branch)
            likely, chosen = torch.softmax(rows @ head + ids[:, None], -1).topk(branches)
        return organize_draft_results(*map(list, zip(*tree, strict=True)), STEPS + 1)

    check(draft)
    template = draft()
    tape = record(lambda: step_outputs.recorded(draft()), Arena())
    probabilities.copy_(torch.rand(2, branches))
    found = step_outputs.replayed(template, tape.replay())
    assert all(torch.equal(*pair) for pair in zip(found, draft(), strict=True))
