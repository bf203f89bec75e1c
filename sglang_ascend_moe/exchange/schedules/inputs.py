"""What a caller brings to an exchange, checked."""

from __future__ import annotations

import reprlib
from typing import NamedTuple

import torch
from torch import Tensor

HOST = torch.device("cpu")
_ID_TYPES = (torch.int32, torch.int64)
_WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PHASES = ("decode", "prefill")


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


def wrong_kind(**arguments: object) -> str | None:
    """What is wrong with arguments that have to be dense tensors; None if nothing is."""
    for name, given in arguments.items():
        if not isinstance(given, Tensor):
            return f"{name} is of type {type(given).__name__}; it must be a torch.Tensor"
        if given.layout is not torch.strided or given.is_nested:
            return f"{name} is a tensor of layout {'nested' if given.is_nested else given.layout}; it must be dense"
    return None


def problem_with_phase(phase: object) -> str | None:
    """What is wrong with the name of a schedule; None if nothing is."""
    if isinstance(phase, str) and phase in _PHASES:
        return None
    return f"phase={reprlib.repr(phase)} is neither 'decode' nor 'prefill'"


def problem_with_experts(experts: object) -> str | None:
    """What is wrong with what is to be called with the rows; None if nothing is."""
    if callable(experts):
        return None
    return f"experts is of type {type(experts).__name__}; it must be a function of rows"


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
    if problem := wrong_kind(x=x, topk_ids=topk_ids, topk_weights=topk_weights):
        return problem
    x_shape = x.shape
    if len(x_shape) != 2 or x_shape[1] != hidden or x.dtype is not dtype:
        return f"x is {tuple(x_shape)} of {x.dtype}; it must be [tokens, {hidden}] of {dtype}"
    shape = (x_shape[0], topk)
    if topk_ids.shape != shape or topk_ids.dtype not in _ID_TYPES:
        return f"topk_ids is {tuple(topk_ids.shape)} of {topk_ids.dtype}; it must be {shape} of int32 or int64"
    weights_dtype = topk_weights.dtype
    if topk_weights.shape != shape or weights_dtype not in _WEIGHT_TYPES:
        wanted = "float32, bfloat16, float16 or float64"
        return f"topk_weights is {tuple(topk_weights.shape)} of {weights_dtype}; it must be {shape} of {wanted}"
    if not x.device == topk_ids.device == topk_weights.device == device:
        devices = f"x, topk_ids, topk_weights on {x.device}, {topk_ids.device}, {topk_weights.device}"
        return f"{devices}: the rows of this exchange are on {device}; pass tensors of it"
    if torch.is_grad_enabled():
        x, topk_weights = x.detach(), topk_weights.detach()
    if weights_dtype is not torch.float32:
        topk_weights = topk_weights.to(torch.float32)
    return RoutedTokens(x if x.stride()[1] == 1 else x.contiguous(), topk_ids.contiguous(), topk_weights.contiguous())


def problem_with_result(
    out: Tensor, *, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device = HOST
) -> str | None:
    """What is wrong with a tensor that the sums of `tokens` tokens are to be written into; None if nothing is."""
    if problem := wrong_kind(out=out):
        return problem
    if out.shape != (tokens, hidden) or out.dtype is not dtype or out.device != device:
        wanted = f"{(tokens, hidden)} of {dtype} on {device}"
        return f"out is {tuple(out.shape)} of {out.dtype} on {out.device}; it must be {wanted}"
    if out.stride()[1] != 1:
        return f"out has strides {out.stride()}; its rows must be dense"
    return None


def problem_with_expert_out(
    expert_out: Tensor, *, rows: int, hidden: int, dtype: torch.dtype, device: torch.device = HOST
) -> str | None:
    """What is wrong with a tensor of the results of `rows` rows, which may have more; None if nothing is."""
    if problem := wrong_kind(expert_out=expert_out):
        return problem
    shape = expert_out.shape
    if len(shape) != 2 or shape[0] < rows or shape[1] != hidden or expert_out.dtype is not dtype:
        return f"expert_out is {tuple(shape)} of {expert_out.dtype}; it must be [at least {rows}, {hidden}] of {dtype}"
    if expert_out.device != device:
        return f"expert_out is on {expert_out.device}; the rows of this exchange are on {device}"
    return None
