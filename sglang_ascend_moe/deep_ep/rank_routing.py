"""Which tokens go to which rank: pure arithmetic on expert ids."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.errors import InvalidInput


class DispatchLayout(NamedTuple):
    """tokens_per_rank int32 [ranks]; tokens_per_expert int32 [experts]; in_rank bool [tokens, ranks]."""

    tokens_per_rank: Tensor
    tokens_per_expert: Tensor
    in_rank: Tensor


def dispatch_layout(topk_idx: Tensor, ranks: int, num_experts: int) -> DispatchLayout:
    """Counts where topk_idx [tokens, topk] (-1: none) sends its tokens; a token counts once for a rank."""
    if topk_idx.dim() != 2 or topk_idx.dtype not in (torch.int32, torch.int64):
        raise InvalidInput(f"topk_idx is {tuple(topk_idx.shape)} of {topk_idx.dtype}; it must be [tokens, topk] int64")
    if num_experts < 1 or num_experts % ranks:
        raise InvalidInput(f"num_experts={num_experts} cannot be divided evenly over {ranks} ranks")
    if topk_idx.numel() and not -1 <= int(topk_idx.min()) <= int(topk_idx.max()) < num_experts:
        raise InvalidInput(f"topk_idx holds ids outside -1 .. {num_experts - 1} (num_experts={num_experts})")
    routed = topk_idx >= 0
    tokens_per_expert = torch.bincount(topk_idx[routed].to(torch.int64), minlength=num_experts)
    # One column more than ranks takes the ids that are -1.
    destination = torch.where(routed, topk_idx // (num_experts // ranks), ranks).to(torch.int64)
    in_rank = torch.zeros(len(topk_idx), ranks + 1, dtype=torch.bool).scatter_(1, destination, True)[:, :ranks]
    return DispatchLayout(in_rank.sum(0).to(torch.int32), tokens_per_expert.to(torch.int32), in_rank.contiguous())


def localise(topk_idx: Tensor, topk_weights: Tensor, first_expert: int, local_experts: int) -> tuple[Tensor, Tensor]:
    """Ids of this rank's experts counted from its first, -1 for all others, and weights that are 0 there."""
    local = topk_idx - first_expert
    elsewhere = (topk_idx < 0) | (local < 0) | (local >= local_experts)
    return local.masked_fill(elsewhere, -1), topk_weights.masked_fill(elsewhere, 0)
