"""Logits of tokens that are not to be drawn become minus infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import operator


def _like(logits: Tensor) -> Tensor:
    return torch.empty_like(logits)


@operator("npu::npu_top_k_top_p", shapes=_like)
def top_k_top_p(logits: Tensor, p: Tensor | None, k: Tensor | None) -> Tensor:
    """Of logits [batch, vocabulary] the `k` [batch] largest, and of these the fewest with the mass `p` [batch].

    All that equal the smallest that stays do stay.
    """
    values = logits.float()
    if k is not None:
        least = values.sort(dim=-1, descending=True).values.gather(1, k.long()[:, None] - 1)
        values = values.masked_fill(values < least, -torch.inf)
    if p is not None:
        # From the smallest on, as long as their sum is not more than what may go.
        ordered, order = values.sort(dim=-1, stable=True)
        gone = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p.float()[:, None]
        gone[:, -1] = False
        values = values.masked_fill(torch.zeros_like(gone).scatter(1, order, gone), -torch.inf)
    return values.to(logits.dtype)
