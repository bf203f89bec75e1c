"""Products for latent attention, layouts of weights, and hints for the cache."""

# ruff: noqa: A002 - parameters are those of the real operators

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import nothing, operator
from tests.npu.operators.refusals import NotEmulated

FORMATS = {2: "ND", 29: "FRACTAL_NZ"}


def _transposed(
    input: Tensor, weight: Tensor, perm_x1: list[int] | None, perm_x2: list[int] | None, perm_y: list[int] | None
) -> Tensor:
    asked = (list(perm_x1 or (0, 1, 2)), list(perm_x2 or (0, 1, 2)), list(perm_y or (1, 0, 2)))
    if asked[0] not in ([0, 1, 2], [1, 0, 2]) or asked[1:] != ([0, 1, 2], [1, 0, 2]):
        raise NotEmulated("npu_transpose_batchmatmul", f"perm_x1, perm_x2, perm_y={asked}")
    rows = input.permute(asked[0])
    return input.new_empty((rows.shape[1], rows.shape[0], weight.shape[2]))


@operator("npu::npu_transpose_batchmatmul", shapes=_transposed)
def transpose_batchmatmul(
    input: Tensor, weight: Tensor, perm_x1: list[int] | None, perm_x2: list[int] | None, perm_y: list[int] | None
) -> Tensor:
    """A product for each head [heads, from, to], with the tokens in front again."""
    _transposed(input, weight, perm_x1, perm_x2, perm_y)
    return torch.bmm(input.permute(perm_x1 or (0, 1, 2)), weight).transpose(0, 1).contiguous()


@operator("npu::batch_matmul_transpose", shapes=nothing)
def batch_matmul_transpose(tensor_a: Tensor, tensor_b: Tensor, tensor_c: Tensor) -> None:
    """The same of [tokens, heads, from], into `tensor_c`."""
    tensor_c.copy_(torch.bmm(tensor_a.transpose(0, 1), tensor_b).transpose(0, 1))


def _cast(input: Tensor, acl_format: int) -> Tensor:
    if acl_format not in FORMATS:
        raise NotEmulated("npu_format_cast", f"{acl_format=}")
    return torch.empty_like(input)


@operator("npu::npu_format_cast", shapes=_cast)
def format_cast(input: Tensor, acl_format: int) -> Tensor:
    """A copy: numbers lie in the emulated NPU's memory in one order only."""
    _cast(input, acl_format)
    return input.clone()


@operator("npu::npu_prefetch", shapes=nothing)
def prefetch(input: Tensor, dependency: Tensor | None, max_size: int, offset: int) -> None:
    """Nothing: there is no cache."""
