"""Norms of rows by their mean square."""

# ruff: noqa: A002 - parameters are those of the real operators

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import operator


def normalise(rows: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Rows in fp32 by the root of their mean square, and its reciprocal."""
    values = rows.float()
    reciprocal = torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + epsilon)
    return values * reciprocal, reciprocal


def _with_reciprocal(input: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), input.new_empty((*input.shape[:-1], 1), dtype=torch.float32)


@operator("npu::npu_rms_norm", shapes=_with_reciprocal)
def rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    normal, reciprocal = normalise(input, epsilon)
    return (normal * gamma.float()).to(input.dtype), reciprocal


@operator("npu::npu_gemma_rms_norm", shapes=_with_reciprocal)
def gemma_rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    normal, reciprocal = normalise(input, epsilon)
    return (normal * (1 + gamma.float())).to(input.dtype), reciprocal


def _with_sum(x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (*_with_reciprocal(x1), torch.empty_like(x1))


@operator("npu::npu_add_rms_norm", shapes=_with_sum)
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of the sum before it is rounded, and the sum."""
    total = x1.float() + x2.float()
    normal, reciprocal = normalise(total, epsilon)
    return (normal * gamma.float()).to(x1.dtype), reciprocal, total.to(x1.dtype)
