"""What SGLang takes from the Python package of sgl-kernel-npu: each function as an operator of that namespace."""

# ruff: noqa: A002 - parameters are those of the real functions

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.npu.operators.declaration import nothing, operator
from tests.npu.operators.experts import activate, clipped, half_of
from tests.npu.operators.normalisation import normalise
from tests.npu.operators.refusals import NotEmulated, WrongArguments
from tests.npu.operators.rotation import for_each_number, turn, turn_first


def _fp32(input: Tensor) -> Tensor:
    return input.new_empty(input.shape, dtype=torch.float32)


@operator("sgl_kernel_npu::l1_norm", shapes=_fp32)
def l1_norm(input: Tensor) -> Tensor:
    """Rows by their sum."""
    values = input.float()
    return values / values.sum(dim=-1, keepdim=True)


def _like_both(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key)


@operator("sgl_kernel_npu::fused_rope_qk_mqa", shapes=_like_both)
def fused_rope_qk_mqa(
    query: Tensor, key: Tensor, cos_sin: Tensor, rotary_dim: int, is_neox_style: bool
) -> tuple[Tensor, Tensor]:
    """Queries and keys [tokens, heads, width] in their first `rotary_dim` numbers; `cos_sin` is that of each token."""
    if cos_sin.shape != (len(query), rotary_dim):
        raise WrongArguments("fused_rope_qk_mqa", f"cos_sin {list(cos_sin.shape)}, {len(query)} tokens, {rotary_dim=}")
    turned = (turn_first(rows, cos_sin, interleaved=not is_neox_style).to(rows.dtype) for rows in (query, key))
    return next(turned), next(turned)


def _split_latent(rows: Tensor, q_lora_rank: int, kv_lora_rank: int, qk_rope_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        rows.new_empty((len(rows), q_lora_rank)),
        rows.new_empty((len(rows), 1, kv_lora_rank)),
        rows.new_empty((len(rows), 1, qk_rope_dim)),
    )


@operator("sgl_kernel_npu::fused_split_qk_norm", shapes=_split_latent)
def fused_split_qk_norm(
    rows: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    kv_weight: Tensor,
    kv_bias: Tensor | None,
    q_lora_rank: int,
    kv_lora_rank: int,
    qk_rope_dim: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latent queries and latent keys, each normalised, and what carries the position."""
    query, latent, position = rows.split([q_lora_rank, kv_lora_rank, qk_rope_dim], dim=-1)
    query = _weighted(normalise(query, eps)[0], q_weight, q_bias).to(rows.dtype)
    latent = _weighted(normalise(latent, eps)[0], kv_weight, kv_bias).to(rows.dtype)
    return query, latent[:, None].contiguous(), position[:, None].clone()


def _weighted(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        values = values * weight.float()
    return values if bias is None else values + bias.float()


def _split_heads(input: Tensor, q_hidden_size: int, kv_hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(input.new_empty((len(input), size)) for size in (q_hidden_size, kv_hidden_size, kv_hidden_size))


@operator("sgl_kernel_npu::split_qkv_rmsnorm_rope", shapes=_split_heads)
def split_qkv_rmsnorm_rope(
    input: Tensor,
    sin: Tensor,
    cos: Tensor,
    q_hidden_size: int,
    kv_hidden_size: int,
    head_dim: int,
    eps: float | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    is_neox_style: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; the first two normalised by head unless `eps` is None, and turned.

    `cos` and `sin` [tokens, ..., turned] have each number of the pairs twice, one half after the other.
    """
    if q_hidden_size % kv_hidden_size:
        raise WrongArguments("split_qkv_rmsnorm_rope", f"{q_hidden_size=} and {kv_hidden_size=}")
    query, key, value = input.split([q_hidden_size, kv_hidden_size, kv_hidden_size], dim=-1)
    turned = sin.shape[-1]
    angles = [
        for_each_number(table.reshape(len(input), turned)[:, : turned // 2], interleaved=not is_neox_style)[:, None]
        for table in (cos, sin)
    ]

    def placed(rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        heads = rows.unflatten(-1, (-1, head_dim)).float()
        if eps is not None:
            heads = _weighted(normalise(heads, eps)[0], weight, bias)
        first = turn(heads[..., :turned], *angles, interleaved=not is_neox_style)
        return torch.cat([first, heads[..., turned:]], dim=-1).flatten(-2).to(input.dtype)

    return placed(query, q_weight, q_bias), placed(key, k_weight, k_bias), value.clone()


def _one_each(input: Tensor) -> Tensor:
    return input.new_empty((len(input), 2), dtype=torch.float32)


@operator("sgl_kernel_npu::split_qkv_mean_squares", shapes=_one_each)
def split_qkv_mean_squares(input: Tensor, q_hidden_size: int, kv_hidden_size: int) -> Tensor:
    """Of the queries and of the keys of each token, to be summed over the ranks that share their heads."""
    query, key, _ = input.float().split([q_hidden_size, kv_hidden_size, kv_hidden_size], dim=-1)
    return torch.stack([query.square().mean(dim=-1), key.square().mean(dim=-1)], dim=-1)


@operator("sgl_kernel_npu::split_qkv_norm_rope", shapes=_split_heads)
def split_qkv_norm_rope(
    input: Tensor,
    mean_squares: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    q_hidden_size: int,
    kv_hidden_size: int,
    head_dim: int,
    rotary_dim: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys by the mean squares over all heads, rounded, then turned; and values."""
    query, key, value = input.split([q_hidden_size, kv_hidden_size, kv_hidden_size], dim=-1)
    half = rotary_dim // 2
    cos_sin = torch.cat([cos[:, :half], sin[:, :half]], dim=-1)

    def placed(rows: Tensor, mean_square: Tensor, weight: Tensor) -> Tensor:
        normal = rows.float() * torch.rsqrt(mean_square + eps)[:, None] * weight.float()
        heads = normal.to(input.dtype).unflatten(-1, (-1, head_dim))
        return turn_first(heads, cos_sin, interleaved=False).flatten(-2).to(input.dtype)

    squares = mean_squares.unbind(-1)
    return placed(query, squares[0], q_weight), placed(key, squares[1], k_weight), value.clone()


def _half_by_row(x: Tensor, need_quant: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.int8 if need_quant else x.dtype
    return x.new_empty(half_of(x), dtype=dtype), x.new_empty(len(x), dtype=torch.float32)


@operator("sgl_kernel_npu::swiglu_quant", shapes=_half_by_row)
def swiglu_quant(x: Tensor, group_list: Tensor, group_list_type: int, need_quant: bool) -> tuple[Tensor, Tensor]:
    """The activation of the counted rows, quantised by row if asked."""
    return _of_counted_rows("swiglu_quant", activate, x, group_list, group_list_type, need_quant)


@operator("sgl_kernel_npu::situ", shapes=_half_by_row)
def situ(
    x: Tensor, group_list: Tensor, group_list_type: int, need_quant: bool, beta: float, linear_beta: float | None
) -> tuple[Tensor, Tensor]:
    """Kimi-K3's, likewise."""

    def activate_bounded(rows: Tensor) -> Tensor:
        gate, up = rows.float().chunk(2, dim=-1)
        gate = beta * (gate / beta).tanh() * gate.sigmoid()
        return gate * (up if linear_beta is None else linear_beta * (up / linear_beta).tanh())

    return _of_counted_rows("situ", activate_bounded, x, group_list, group_list_type, need_quant)


def _of_counted_rows(
    name: str,
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    group_list: Tensor,
    group_list_type: int,
    need_quant: bool,
) -> tuple[Tensor, Tensor]:
    """Halves of a step are rounded up."""
    if group_list_type != 1:
        raise NotEmulated(name, f"{group_list_type=}")
    total = int(group_list.sum())
    activated = activation(x[:total])
    rows, scales = _half_by_row(x, need_quant)
    rows.fill_(0 if need_quant else torch.nan)
    scales.fill_(torch.nan)
    if need_quant:
        scale = activated.abs().amax(dim=-1) / 127
        steps = (activated / torch.where(scale > 0, scale, 1.0)[:, None] + 0.5).floor()
        rows[:total], scales[:total] = steps.clamp(-128, 127).to(torch.int8), scale
    else:
        rows[:total] = activated.to(x.dtype)
    return rows, scales


def _half_as_told(hidden_states: Tensor, dim: int) -> Tensor:
    return hidden_states.new_empty((hidden_states.numel() // dim, dim // 2))


@operator("sgl_kernel_npu::swiglu_oai_triton", shapes=_half_as_told)
def swiglu_oai_triton(hidden_states: Tensor, dim: int, gemm1_alpha: float, gemm1_clamp_limit: float) -> Tensor:
    """gpt-oss's of all rows; gate and up take turns."""
    rows = hidden_states.view(-1, dim)
    activated = clipped((rows[:, ::2], rows[:, 1::2]), alpha=gemm1_alpha, limit=gemm1_clamp_limit, bias=1.0)
    return activated.to(rows.dtype)


@operator("sgl_kernel_npu::alloc_extend", shapes=nothing)
def alloc_extend(
    pre_lens: Tensor, seq_lens: Tensor, last_loc: Tensor, free_pages: Tensor, out_indices: Tensor, page_size: int
) -> None:
    """A slot for each new token of each sequence: first in its last page, then in free ones, as they come."""
    pages = iter(free_pages.tolist())
    slots: list[int] = []
    for before, after, last in zip(pre_lens.tolist(), seq_lens.tolist(), last_loc.tolist(), strict=True):
        for position in range(before, after):
            last = next(pages) * page_size if position % page_size == 0 else last + 1
            slots.append(last)
    out_indices[: len(slots)] = torch.tensor(slots, dtype=out_indices.dtype)
