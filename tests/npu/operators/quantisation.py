"""Numbers of 8 bits with a scale for each row, and products of them by weights of 8 and of 4 bits."""

# ruff: noqa: A002 - parameters are those of the real operators

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import operator
from tests.npu.operators.refusals import NotEmulated

# Types of torch as an operator sees them.
DTYPES = {1: torch.int8, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16}


def dtype_of(operator_name: str, number: int | None, default: torch.dtype) -> torch.dtype:
    if number is None:
        return default
    if number not in DTYPES:
        raise NotEmulated(operator_name, f"the type {number}")
    return DTYPES[number]


def by_row(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers and fp32 scales: the largest of each row is 127."""
    values = rows.float()
    largest = values.abs().amax(dim=-1)
    factors = torch.where(largest > 0, 127 / largest, 0.0)
    return (values * factors[..., None]).round().to(torch.int8), largest / 127


def _quantised(input: Tensor, dst_type: int | None, quant_mode: str) -> tuple[Tensor, Tensor]:
    name = "npu_dynamic_quant"
    if quant_mode != "pertoken" or dtype_of(name, dst_type, torch.int8) != torch.int8:
        raise NotEmulated(name, f"{quant_mode=}, {dst_type=}")
    return input.new_empty(input.shape, dtype=torch.int8), input.new_empty(input.shape[:-1], dtype=torch.float32)


@operator("npu::npu_dynamic_quant", shapes=_quantised)
def dynamic_quant(input: Tensor, dst_type: int | None, quant_mode: str) -> tuple[Tensor, Tensor]:
    _quantised(input, dst_type, quant_mode)
    return by_row(input)


def scaled_product(rows: Tensor, weights: Tensor, channels: Tensor, tokens: Tensor | None) -> Tensor:
    """int8 rows by int8 weights [from, to], exact, then scaled by channel and by token in fp32."""
    scaled = (rows.to(torch.int32) @ weights.to(torch.int32)).float() * channels.float()
    return scaled if tokens is None else scaled * tokens[:, None]


PACKED = 8
"""Weights of 4 bits in an int32, the first in its lowest bits."""

GROUP = 256
"""Rows of such weights with scales of their own, where they are scaled by group."""


def unpack(packed: Tensor) -> Tensor:
    """int32 [..., to / 8] -> int8 [..., to], -8 to 7 each."""
    to_the_top = torch.arange(28, -1, -4, dtype=torch.int32)
    return ((packed[..., None] << to_the_top) >> 28).flatten(-2).to(torch.int8)


def four_bit_product(rows: Tensor, packed: Tensor, scales: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
    """int8 rows by packed weights [from, to / 8], exact for each group, then scaled in fp32.

    scales: int64 [groups, to], whose low half is an fp32. The matrix units take 4 bits on both sides: a number is
    16 * high + low + 8, both halves from -8 to 7. Nobody multiplies the eights: they are in `bias` [to], 8 * the sum of
    the scaled weights. (Where the real kernel rounds on the way is not known.)
    """
    taken = rows.to(torch.int32) - 8
    out = bias.expand(len(rows), -1).clone()
    parts, groups = taken.chunk(len(scales), dim=1), unpack(packed).to(torch.int32).chunk(len(scales))
    for part, weights, scale in zip(parts, groups, scales, strict=True):
        out += (part @ weights).float() * scale.to(torch.int32).view(torch.float32)
    return out * tokens[:, None]


def _product(x1: Tensor, x2: Tensor, output_dtype: int | None) -> Tensor:
    name = "npu_quant_matmul"
    dtype = dtype_of(name, output_dtype, torch.int8)
    if dtype == torch.int8 or (x1.dtype, x2.dtype, x1.dim()) != (torch.int8, torch.int8, 2):
        raise NotEmulated(name, f"{x1.dtype} {list(x1.shape)} by {x2.dtype} to {dtype}")
    return x1.new_empty((len(x1), x2.shape[1]), dtype=dtype)


@operator("npu::npu_quant_matmul", shapes=_product)
def quant_matmul(
    x1: Tensor, x2: Tensor, scale: Tensor, pertoken_scale: Tensor | None, bias: Tensor | None, output_dtype: int | None
) -> Tensor:
    dtype = _product(x1, x2, output_dtype).dtype
    if scale.dtype not in (torch.float32, torch.bfloat16) or (bias is not None and bias.dtype == torch.int32):
        raise NotEmulated("npu_quant_matmul", f"a scale of {scale.dtype}, {bias=}")
    product = scaled_product(x1, x2, scale, pertoken_scale)
    return (product if bias is None else product + bias.float()).to(dtype)
