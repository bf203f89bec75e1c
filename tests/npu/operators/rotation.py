"""Rotary embeddings: pairs of numbers are turned by the angle of their position."""

# ruff: noqa: A002 - parameters are those of the real operators

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import operator
from tests.npu.operators.refusals import NotEmulated


def partner(values: Tensor, *, interleaved: bool) -> Tensor:
    """The other number of each pair, that of the first ones negative: pairs lie next to each other, or half apart."""
    if interleaved:
        return torch.stack([-values[..., 1::2], values[..., ::2]], dim=-1).flatten(-2)
    first, second = values.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def turn(values: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool) -> Tensor:
    """fp32; cosines and sines have an entry for each number."""
    values = values.float()
    return values * cosines.float() + partner(values, interleaved=interleaved) * sines.float()


def for_each_number(halves: Tensor, *, interleaved: bool) -> Tensor:
    """An entry for each number of one for each pair."""
    return halves.repeat_interleave(2, dim=-1) if interleaved else torch.cat([halves, halves], dim=-1)


def turn_first(values: Tensor, cos_sin: Tensor, *, interleaved: bool) -> Tensor:
    """Heads [tokens, heads, width] in their first numbers; `cos_sin` [tokens, turned]: cosines, then sines, by pair."""
    turned = cos_sin.shape[-1]
    cosines, sines = (for_each_number(half, interleaved=interleaved)[:, None] for half in cos_sin.chunk(2, dim=-1))
    first = turn(values[..., :turned], cosines, sines, interleaved=interleaved)
    return torch.cat([first, values[..., turned:].float()], dim=-1)


def to_halves(values: Tensor) -> Tensor:
    """Pairs that lie next to each other, half apart."""
    return values.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _interleaved(operator_name: str, mode: str | None) -> bool:
    if mode not in ("half", "interleave"):
        raise NotEmulated(operator_name, f"rotary_mode={mode!r}")
    return mode == "interleave"


def _like(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@operator("npu::npu_rotary_mul", shapes=_like)
def rotary_mul(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str) -> Tensor:
    return turn(input, r1, r2, interleaved=_interleaved("npu_rotary_mul", rotary_mode)).to(input.dtype)


def _like_x(x: Tensor) -> Tensor:
    return _like(x)


@operator("npu::npu_interleave_rope", shapes=_like_x)
def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Takes pairs next to each other, and gives them half apart."""
    return turn(to_halves(x), cos, sin, interleaved=False).to(x.dtype)


def _like_both(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return _like(query), _like(key)


@operator("npu::npu_mrope", shapes=_like_both)
def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    mrope_section: list[int] | None,
    rotary_mode: str | None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys [tokens, heads x head size], in the first numbers of each head."""
    if any(mrope_section or ()):
        raise NotEmulated("npu_mrope", f"mrope_section={mrope_section}")
    interleaved = _interleaved("npu_mrope", rotary_mode)
    cos_sin = cos_sin_cache[positions.long()]

    def turned(rows: Tensor) -> Tensor:
        heads = rows.unflatten(1, (-1, head_size))
        return turn_first(heads, cos_sin, interleaved=interleaved).flatten(1).to(rows.dtype)

    return turned(query), turned(key)
