"""Writes into paged caches of keys and values, and into other tables."""

# ruff: noqa: A002 - parameters are those of the real operators

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import nothing, operator
from tests.npu.operators.normalisation import normalise
from tests.npu.operators.refusals import NotEmulated, WrongArguments
from tests.npu.operators.rotation import to_halves, turn


def put(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Each row into its slot of [slots, ...]; a negative slot takes none."""
    wanted = slots >= 0
    cache[slots[wanted].long()] = rows[wanted].reshape(-1, *cache.shape[1:])


@operator("atb::_npu_reshape_and_cache", shapes=nothing)
def reshape_and_cache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor) -> None:
    """Rows [tokens, heads, width] into caches [pages, page size, heads, width]."""
    put(key_cache.view(-1, *key_cache.shape[2:]), slot_indices, key)
    put(value_cache.view(-1, *value_cache.shape[2:]), slot_indices, value)


@operator("npu::npu_scatter_pa_kv_cache", shapes=nothing)
def scatter_pa_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, cache_mode: str | None
) -> None:
    if cache_mode != "Norm":
        raise NotEmulated("npu_scatter_pa_kv_cache", f"cache_mode={cache_mode!r}")
    reshape_and_cache(key, value, key_cache, value_cache, slot_mapping)


def _itself(input: Tensor) -> Tensor:
    return input


@operator("npu::npu_scatter_nd_update_", shapes=_itself)
def scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`updates` into the places of `input` that the last dimension of `indices` names."""
    if indices.shape[-1] > input.dim():
        raise WrongArguments("npu_scatter_nd_update_", f"indices {list(indices.shape)} for {list(input.shape)}")
    if (indices < 0).any():
        raise WrongArguments("npu_scatter_nd_update_", f"a negative index, {int(indices.min())}")
    input[tuple(indices.long().unbind(-1))] = updates
    return input


def _latent_shapes(
    kv: Tensor, gamma: Tensor, cos: Tensor, k_cache: Tensor, ckv_cache: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ahead = kv.shape[:-1]
    return k_cache, ckv_cache, kv.new_empty((*ahead, cos.shape[3])), kv.new_empty((*ahead, gamma.shape[0]))


@operator("npu::npu_kv_rmsnorm_rope_cache", shapes=_latent_shapes)
def kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    epsilon: float,
    cache_mode: str,
    is_output_kv: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latent keys [batch, 1, tokens, latent + turned]: the first normalised, the others turned, both into their caches.

    Writes into the caches, though the schema does not say so. Returns them and what went in, which is NaN unless
    `is_output_kv`.
    """
    if cache_mode != "PA_BNSD":
        raise NotEmulated("npu_kv_rmsnorm_rope_cache", f"cache_mode={cache_mode!r}")
    latent, position = kv.split([gamma.shape[0], cos.shape[3]], dim=-1)
    normal = (normalise(latent, epsilon)[0] * gamma.float()).to(kv.dtype)
    turned = turn(to_halves(position), cos, sin, interleaved=False).to(kv.dtype)
    put(k_cache.view(-1, turned.shape[-1]), index.flatten(), turned.flatten(0, -2))
    put(ckv_cache.view(-1, normal.shape[-1]), index.flatten(), normal.flatten(0, -2))
    if not is_output_kv:
        turned, normal = torch.full_like(turned, torch.nan), torch.full_like(normal, torch.nan)
    return k_cache, ckv_cache, turned, normal
