"""Rows as float8_e4m3fn with one scale for every 128 elements, as DeepEP makes them.

The formulas are those of DeepEP's kernels: amax = max(|x|, 1e-4), scale = amax / 448, rounded up to a power of two if
that is asked for; value = x / scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_ascend_moe.errors import InvalidInput

BLOCK = 128
_LARGEST = 448.0
_LEAST_MAGNITUDE = 1e-4
_EXPONENT_SHIFT = 23
SCALES_PER_WORD = 4


class Fp8Format:
    """How `low_latency_dispatch` sends and returns rows. `row_bytes`: of a row that travels, its scales behind it."""

    def __init__(self, hidden: int, *, round_scale: bool, use_ue8m0: bool) -> None:
        if hidden % BLOCK:
            raise InvalidInput(f"use_fp8=True: hidden={hidden} is not a multiple of {BLOCK}")
        if use_ue8m0 and not round_scale:
            raise InvalidInput("use_ue8m0=True needs round_scale=True: only powers of two have that format")
        if use_ue8m0 and hidden % (BLOCK * SCALES_PER_WORD):
            raise InvalidInput(f"use_ue8m0=True: hidden={hidden} is not a multiple of {BLOCK * SCALES_PER_WORD}")
        self.hidden = hidden
        self.round_scale = round_scale
        self.use_ue8m0 = use_ue8m0
        self.scales = hidden // BLOCK
        self.row_bytes = -(-(hidden + 4 * self.scales) // 16) * 16

    def pack(self, x: Tensor) -> Tensor:
        """uint8 [tokens, row_bytes]: what travels of x [tokens, hidden] bfloat16."""
        values, scales = quantise(x, round_scale=self.round_scale)
        packed = torch.zeros(len(x), self.row_bytes, dtype=torch.uint8)
        packed[:, : self.hidden] = values.view(torch.uint8)
        packed[:, self.hidden : self.hidden + 4 * self.scales].view(torch.float32).copy_(scales)
        return packed

    def values(self, window: Tensor) -> Tensor:
        """float8_e4m3fn [..., hidden] view of bfloat16 window rows [..., hidden] that hold such rows."""
        return window.view(torch.float8_e4m3fn)[..., : self.hidden]

    def new_scales(self, experts: int, rows: int) -> Tensor:
        """[experts, rows, hidden / 128] float32, or hidden / 512 int32 for ue8m0; the last two dimensions column-major,
        as DeepEP's for TMA."""
        if self.use_ue8m0:
            return torch.zeros(experts, self.scales // SCALES_PER_WORD, rows, dtype=torch.int32).mT
        return torch.zeros(experts, self.scales, rows, dtype=torch.float32).mT

    def read_scales(self, window: Tensor, out: Tensor) -> None:
        """Scales out of window rows [rows, hidden] bfloat16 into `out` [rows, ...] of `new_scales`."""
        begin = self.hidden // 4
        scales = window.view(torch.float32)[:, begin : begin + self.scales]
        out.copy_(exponents(scales) if self.use_ue8m0 else scales)


def quantise(x: Tensor, *, round_scale: bool = False) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [tokens, hidden] and float32 scales [tokens, hidden / 128] of x; value times scale gives x back."""
    blocks = x.float().view(len(x), x.shape[1] // BLOCK, BLOCK)
    magnitude = blocks.abs().amax(dim=2).clamp(min=_LEAST_MAGNITUDE)
    if round_scale:
        # The next power of two by the bits of the exponent: exact, where log2 would round.
        mantissa, exponent = torch.frexp(magnitude * (1 / _LARGEST))
        scales = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())
        factors = 1 / scales
    else:
        # A tensor, for a plain number would be multiplied by the reciprocal, which rounds twice.
        scales, factors = magnitude * (1 / _LARGEST), torch.tensor(_LARGEST) / magnitude
    return (blocks * factors.unsqueeze(2)).to(torch.float8_e4m3fn).view(x.shape), scales


def exponents(scales: Tensor) -> Tensor:
    """Powers of two, float32 [rows, n], as UE8M0: four biased exponents in each word of int32 [rows, n / 4]."""
    biased = (scales.contiguous().view(torch.int32) >> _EXPONENT_SHIFT).to(torch.uint8)
    return biased.view(torch.int32)
