"""DeepEP's measure of a difference."""

from __future__ import annotations

from torch import Tensor


def difference(one: Tensor, another: Tensor) -> float:
    """1 - 2 (a . b) / (a . a + b . b) of a = one + 1 and b = another + 1, in float64; 0 if they are equal."""
    a, b = one.double() + 1, another.double() + 1
    return float(1 - 2 * (a * b).sum() / (a * a + b * b).sum())
