"""Rows that a model adds to the output of a layer are those that the rank holds."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ascend_moe.serving.worker.added_rows import add_own_rows


def add(hidden_states: Any, forward_batch: str, extra: torch.Tensor) -> Any:
    """As SGLang's."""
    assert forward_batch == "batch"
    return hidden_states + extra


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_with_a_share_of_the_rows_adds_its_share(monkeypatch, rank):
    parallel = SimpleNamespace(attn_tp_size=2, attn_tp_rank=rank)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", SimpleNamespace(get_parallel=lambda: parallel))
    extra = torch.arange(12.0).reshape(4, 3)
    share, whole = torch.ones(2, 3), torch.ones(4, 3)
    assert torch.equal(add_own_rows(add, share, "batch", extra), share + extra[2 * rank : 2 * rank + 2])
    assert torch.equal(add_own_rows(add, whole, "batch", extra), whole + extra)


def test_an_output_that_is_not_summed_yet_has_all_rows():
    class Owed:
        """As SGLang's handle of an output that ranks have not added up."""

        def __add__(self, extra: torch.Tensor) -> int:
            return len(extra)

    assert add_own_rows(add, Owed(), "batch", torch.ones(4, 3)) == 4
