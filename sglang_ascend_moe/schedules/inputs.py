"""What a caller brings to an exchange, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HOST = torch.device("cpu")
_ID_TYPES = (torch.int32, torch.int64)


class RoutedTokens(NamedTuple):
    """A call's checked input.

    x [tokens, hidden] with dense rows; ids [tokens, topk] int32 or int64, contiguous, -1 = not routed;
    weights [tokens, topk] float32, contiguous.
    """

    x: Tensor
    ids: Tensor
    weights: Tensor

    def between(self, begin: int, end: int) -> RoutedTokens:
        return RoutedTokens(self.x[begin:end], self.ids[begin:end], self.weights[begin:end])


def routed_tokens(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    hidden: int,
    topk: int,
    dtype: torch.dtype,
    device: torch.device = HOST,
) -> RoutedTokens | str:
    """The arguments of a call in the memory layout that kernels take, copied only where they have another; or what is
    wrong with them, naming the one to change."""
    x_shape = x.shape
    if len(x_shape) != 2 or x_shape[1] != hidden or x.dtype is not dtype:
        return f"x is {tuple(x_shape)} of {x.dtype}; it must be [tokens, {hidden}] of {dtype}"
    shape = (x_shape[0], topk)
    if topk_ids.shape != shape or topk_ids.dtype not in _ID_TYPES:
        return f"topk_ids is {tuple(topk_ids.shape)} of {topk_ids.dtype}; it must be {shape} of int32 or int64"
    weights_dtype = topk_weights.dtype
    if topk_weights.shape != shape or not weights_dtype.is_floating_point:
        return f"topk_weights is {tuple(topk_weights.shape)} of {weights_dtype}; it must be {shape}, floating"
    if not x.device == topk_ids.device == topk_weights.device == device:
        devices = f"x, topk_ids, topk_weights on {x.device}, {topk_ids.device}, {topk_weights.device}"
        return f"{devices}: the windows of this exchange are on {device}; pass tensors of it"
    if torch.is_grad_enabled():
        x, topk_weights = x.detach(), topk_weights.detach()
    if weights_dtype is not torch.float32:
        topk_weights = topk_weights.to(torch.float32)
    return RoutedTokens(x if x.stride()[1] == 1 else x.contiguous(), topk_ids.contiguous(), topk_weights.contiguous())


def problem_with_result(
    out: Tensor, *, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device = HOST
) -> str | None:
    """What is wrong with a tensor that the sums of `tokens` tokens are to be written into; None if nothing is."""
    if out.shape != (tokens, hidden) or out.dtype is not dtype or out.device != device:
        wanted = f"{(tokens, hidden)} of {dtype} on {device}"
        return f"out is {tuple(out.shape)} of {out.dtype} on {out.device}; it must be {wanted}"
    if out.stride()[1] != 1:
        return f"out has strides {out.stride()}; its rows must be dense"
    return None
