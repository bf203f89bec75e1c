"""Which experts take a token, its row brought to each of them, and their rows summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.npu.operators.declaration import operator
from tests.npu.operators.quantisation import by_row
from tests.npu.operators.refusals import NotEmulated, WrongArguments


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the largest, the lower index first where two are equal."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _chosen(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty((len(x), k)),
        x.new_empty((len(x), k), dtype=torch.int32),
        x.new_empty(x.shape, dtype=torch.float32),
    )


def _chosen_rows(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    weights, experts, _ = _chosen(x, k)
    return weights, experts, torch.empty_like(experts)


@operator("npu::npu_moe_gating_top_k_softmax", shapes=_chosen_rows)
def gating_top_k_softmax(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and experts [tokens, k] of logits [tokens, experts], and the numbers of the rows, column by column."""
    scores = x.float().softmax(dim=-1)
    experts = largest(scores, k)
    rows = torch.arange(len(x) * k, dtype=torch.int32).view(k, len(x)).T.contiguous()
    return scores.gather(1, experts).to(x.dtype), experts.int(), rows


@operator("npu::npu_moe_gating_top_k", shapes=_chosen)
def gating_top_k(
    x: Tensor,
    k: int,
    bias: Tensor | None,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts chosen by score and bias out of the best groups, weighted by score alone; the scores if `out_flag`."""
    name = "npu_moe_gating_top_k"
    if norm_type not in (0, 1) or group_select_mode not in (0, 1) or renorm not in (0, 1):
        raise NotEmulated(name, f"{norm_type=}, {group_select_mode=}, {renorm=}")
    scores = x.float().sigmoid() if norm_type == 1 else x.float().softmax(dim=-1)
    ranked = scores if bias is None else scores + bias.float()
    if group_count > 1:
        groups = ranked.unflatten(1, (group_count, -1))
        best = groups.amax(dim=-1) if group_select_mode == 0 else groups.topk(2, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter(1, largest(best, k_group), True)
        ranked = groups.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    experts = largest(ranked, k)
    weights = scores.gather(1, experts)
    if norm_type == 1 or renorm == 1:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + eps)
    weights = weights * routed_scaling_factor
    return weights.to(x.dtype), experts.int(), scores if out_flag else torch.full_like(scores, torch.nan)


@operator("custom::npu_moe_gating_top_k", shapes=_chosen)
def gating_of_deepseek_v4(
    x: Tensor, k: int, bias: Tensor | None, norm_type: int, routed_scaling_factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Likewise of all experts, by the root of softplus; weights add up to `routed_scaling_factor`."""
    if norm_type != 2:
        raise NotEmulated("npu_moe_gating_top_k", f"{norm_type=}")
    scores = F.softplus(x.float()).sqrt()
    experts = largest(scores if bias is None else scores + bias.float(), k)
    weights = scores.gather(1, experts)
    weights = weights / weights.sum(dim=-1, keepdim=True) * routed_scaling_factor
    return weights.to(x.dtype), experts.int(), torch.full_like(scores, torch.nan)


def _expanded(
    x: Tensor,
    expert_idx: Tensor,
    active_num: int,
    expert_num: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    name = "npu_moe_init_routing_v2"
    if quant_mode not in (-1, 1) or expert_tokens_num_type not in (0, 1) or not expert_tokens_num_flag:
        raise NotEmulated(name, f"{quant_mode=}, {expert_tokens_num_type=}, {expert_tokens_num_flag=}")
    rows = expert_idx.numel()
    if active_num not in (-1, rows):
        raise NotEmulated(name, f"{active_num=} and {rows} rows")
    begin, end = active_expert_range or (0, expert_num)
    return (
        x.new_empty((rows, x.shape[1]), dtype=torch.int8 if quant_mode == 1 else x.dtype),
        x.new_empty(rows, dtype=torch.int32),
        x.new_empty(end - begin, dtype=torch.int64),
        x.new_empty(rows, dtype=torch.float32),
    )


@operator("npu::npu_moe_init_routing_v2", shapes=_expanded)
def init_routing(
    x: Tensor,
    expert_idx: Tensor,
    active_num: int,
    expert_num: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of tokens [tokens, hidden] by expert, where the row of each (token, k) is, counts, and scales of int8 rows.

    A (token, k) of an expert out of range has no row: its place is -1, and rows behind the last one are not valid.
    """
    rows, places, counted, scales = _expanded(
        x, expert_idx, active_num, expert_num, expert_tokens_num_type, expert_tokens_num_flag, quant_mode,
        active_expert_range,
    )  # fmt: skip
    begin, end = active_expert_range or (0, expert_num)
    flat = expert_idx.flatten()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < expert_num:
        raise WrongArguments("npu_moe_init_routing_v2", f"experts {flat.min()} to {flat.max()} of {expert_num}")
    active = (flat >= begin) & (flat < end)
    order = torch.where(active, flat, expert_num).sort(stable=True).indices[: int(active.sum())]
    rows.fill_(0 if rows.dtype == torch.int8 else torch.nan)
    scales.fill_(torch.nan)
    taken = x[order // expert_idx.shape[1]]
    if quant_mode == 1:
        rows[: len(order)], scales[: len(order)] = by_row(taken)
    else:
        rows[: len(order)] = taken
    places.fill_(-1)
    places[order] = torch.arange(len(order), dtype=torch.int32)
    counted.copy_(torch.bincount(flat[active] - begin, minlength=end - begin))
    return rows, places, counted.cumsum(0) if expert_tokens_num_type == 0 else counted, scales


def _summed(expanded_permuted_rows: Tensor, scales: Tensor | None) -> Tensor:
    if scales is None:
        raise NotEmulated("npu_moe_finalize_routing", "scales=None")
    return expanded_permuted_rows.new_empty((len(scales), expanded_permuted_rows.shape[1]))


@operator("npu::npu_moe_finalize_routing", shapes=_summed)
def finalize_routing(
    expanded_permuted_rows: Tensor,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,  # noqa: ARG001 - is for a bias
    drop_pad_mode: int | None,
) -> Tensor:
    """The weighted sum of each token's rows, in the order of k. Mode 2 has the places token by token, 0 by k."""
    name = "npu_moe_finalize_routing"
    if scales is None or drop_pad_mode not in (0, 2):
        raise NotEmulated(name, f"{drop_pad_mode=}" if scales is not None else "scales=None")
    tokens, count = scales.shape
    places = expanded_src_to_dst_row.long()
    by_token = places.view(tokens, count) if drop_pad_mode == 2 else places.view(count, tokens).T
    total = torch.zeros((tokens, expanded_permuted_rows.shape[1]), dtype=torch.float32)
    for k in range(count):
        there = by_token[:, k] >= 0
        rows = expanded_permuted_rows[by_token[there, k]].float()
        total[there] += rows * scales[there, k, None].float()
    return total.to(expanded_permuted_rows.dtype)
