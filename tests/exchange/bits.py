"""Exact comparison of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, so that NaN equals NaN and -0.0 differs from 0.0."""
    return tensor.contiguous().view(_INTEGER_OF_SIZE[tensor.element_size()])


def require_same_bits(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise unless dtype, shape and every bit agree: for rows, which are only copied."""
    _require(actual, expected, what, bits)


def require_same_values(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise unless every bit agrees, any NaN being as good as another: IEEE 754 leaves sign and payload of a NaN that
    arithmetic makes to the machine.
    """
    _require(actual, expected, what, lambda tensor: bits(tensor.masked_fill(tensor.isnan(), torch.nan)))


def _require(actual: Tensor, expected: Tensor, what: str, image) -> None:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        raise AssertionError(
            f"{what}: {actual.dtype} {list(actual.shape)} instead of {expected.dtype} {list(expected.shape)}"
        )
    different = (image(actual) != image(expected)).nonzero()
    if len(different):
        at = tuple(different[0].tolist())
        raise AssertionError(
            f"{what}: {len(different)} of {actual.numel()} elements differ, first at {list(at)}: "
            f"{actual[at].item()!r} instead of {expected[at].item()!r}"
        )
