"""What ranks bring to a dispatch of normal mode, checked, and made known to all of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.deep_ep.fp8 import BLOCK, SCALES_PER_WORD
from sglang_ascend_moe.deep_ep.group import RankGroup
from sglang_ascend_moe.deep_ep.rank_routing import dispatch_layout
from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, ProtocolMismatch

_SETTINGS = ("hidden", "bytes per element of x", "scales per token", "num_experts", "topk")


class DispatchInput(NamedTuple):
    """Arguments of `Buffer.dispatch` by those names; `scales` and the top-k tensors None where there are none."""

    x: Tensor
    scales: Tensor | None
    tokens_per_rank: Tensor
    in_rank: Tensor
    tokens_per_expert: Tensor
    topk_idx: Tensor | None
    topk_weights: Tensor | None


class Agreed(NamedTuple):
    """What all ranks know before rows move: tokens_per_rank int64 [sources, destinations]; tokens of every rank; rows
    for each expert of this rank."""

    tokens_per_rank: Tensor
    tokens: list[int]
    num_experts: int
    local_counts: list[int]


def split_rows(x: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Rows and their scales; raises `InvalidInput` for what normal mode does not move."""
    rows, scales = x if isinstance(x, tuple) else (x, None)
    dtype = torch.bfloat16 if scales is None else torch.float8_e4m3fn
    if rows.dim() != 2 or rows.dtype is not dtype or not rows.is_cpu:
        raise InvalidInput(
            f"x is {tuple(rows.shape)} of {rows.dtype} on {rows.device}; it must be [tokens, hidden] of {dtype}"
        )
    if scales is not None:
        blocks = rows.shape[1] // BLOCK
        shapes = {torch.float32: (len(rows), blocks), torch.int32: (len(rows), blocks // SCALES_PER_WORD)}
        if rows.shape[1] % BLOCK or tuple(scales.shape) != shapes.get(scales.dtype):
            raise InvalidInput(
                f"the scales of x are {tuple(scales.shape)} of {scales.dtype}; they must be {shapes[torch.float32]} of "
                f"torch.float32, or {shapes[torch.int32]} of torch.int32 (ue8m0)"
            )
    return rows, scales


def agree(group: RankGroup, given: DispatchInput, worst_tokens: int) -> Agreed:
    """Tells every rank what this one brings. What one rank objects to in its own arguments is raised on all."""
    problem = _dispatch_problem(given, group.size)
    experts = given.tokens_per_expert.numel()
    topk = 0 if given.topk_idx is None else given.topk_idx.shape[-1]
    scales = 0 if given.scales is None else given.scales.shape[1]
    settings = [given.x.shape[1], given.x.element_size(), scales, experts, topk]
    heads = group.gather(torch.tensor([problem is not None, len(given.x), worst_tokens, *settings]))
    if problem is not None:
        raise InvalidInput(problem)
    for rank, head in enumerate(heads.tolist()):
        if head[0]:
            raise InvalidInput(f"rank {rank} refuses its arguments of dispatch; its own message says why")
        for name, ours, theirs in zip(_SETTINGS, settings, head[3:], strict=True):
            if ours != theirs:
                raise ProtocolMismatch(f"dispatch: {name} is {ours} here and {theirs} on rank {rank}")
    tokens = heads[:, 1].tolist()
    counts = group.gather(torch.cat([given.tokens_per_rank.long(), given.tokens_per_expert.long()]))
    tokens_per_rank = counts[:, : group.size]
    for rank, (arriving, worst) in enumerate(zip(tokens_per_rank.sum(0).tolist(), heads[:, 2].tolist(), strict=True)):
        if worst and arriving > worst:
            raise InvalidInput(
                f"num_worst_tokens={worst} of rank {rank} is less than the {arriving} tokens that arrive there"
            )
    local = experts // group.size
    by_expert = counts[:, group.size :].sum(0)[group.rank * local : (group.rank + 1) * local]
    return Agreed(tokens_per_rank, tokens, experts, by_expert.tolist())


def _dispatch_problem(given: DispatchInput, ranks: int) -> str | None:
    tokens = len(given.x)
    if given.in_rank.shape != (tokens, ranks) or given.in_rank.dtype is not torch.bool:
        return f"is_token_in_rank is {tuple(given.in_rank.shape)}; it must be {(tokens, ranks)} of torch.bool"
    if given.tokens_per_rank.tolist() != given.in_rank.sum(0).tolist():
        return "num_tokens_per_rank does not count what is_token_in_rank says"
    experts = given.tokens_per_expert.numel()
    if given.tokens_per_expert.dim() != 1 or experts % ranks:
        return f"num_tokens_per_expert has {experts} experts, which cannot be divided evenly over {ranks} ranks"
    if (given.topk_idx is None) != (given.topk_weights is None):
        return "topk_idx and topk_weights come together or not at all"
    if given.topk_idx is None or given.topk_weights is None:
        return None
    if given.topk_weights.shape != given.topk_idx.shape or len(given.topk_idx) != tokens:
        return (
            f"topk_idx is {tuple(given.topk_idx.shape)}, topk_weights {tuple(given.topk_weights.shape)}; "
            f"both must be [{tokens}, topk]"
        )
    try:
        layout = dispatch_layout(given.topk_idx, ranks, experts)
    except AscendMoeError as error:
        return str(error)
    if not torch.equal(layout.in_rank, given.in_rank):
        return "is_token_in_rank is not what topk_idx says; take it from get_dispatch_layout"
    if layout.tokens_per_expert.tolist() != given.tokens_per_expert.tolist():
        return "num_tokens_per_expert does not count what topk_idx says"
    return None
