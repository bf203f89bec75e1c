"""Products of a layer's experts with weights of 16 bits and of 8, one after the other, in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

SEED = 1


class Experts(NamedTuple):
    """Of one rank. hidden, intermediate: elements of a row, and of one between the two products."""

    number: int
    hidden: int
    intermediate: int

    def bytes_read(self, bits: int) -> int:
        """Of weights, and of scales of those of 8 bits, when every expert has rows."""
        numbers = 3 * self.hidden * self.intermediate
        scales = 4 * (2 * self.intermediate + self.hidden) if bits == 8 else 0
        return self.number * (numbers * bits // 8 + scales)


class ProductsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Medians over `rounds`, in milliseconds for all experts of a layer; bytes are those of `Experts.bytes_read`."""

    rows: int
    bfloat16_ms: float
    int8_ms: float
    bfloat16_bytes: int
    int8_bytes: int
    rounds: int


class Weights(NamedTuple):
    """Of one product of all experts: int8 [experts, to, from], fp32 [experts, to], and what both stand for."""

    numbers: Tensor
    scales: Tensor
    plain: Tensor

    @classmethod
    def drawn(cls, count: int, to: int, inputs: int, generator: torch.Generator) -> Weights:
        numbers = torch.randint(-127, 128, (count, to, inputs), generator=generator, dtype=torch.int8)
        scales = torch.rand(count, to, generator=generator) * inputs**-0.5 / 64
        return cls(numbers, scales, (numbers * scales[..., None]).to(torch.bfloat16))


def plain_expert(rows: Tensor, first: Weights, second: Weights, expert: int) -> Tensor:
    """As `host_experts` multiplies weights that were dequantised when they were loaded."""
    return torch.mm(_activated(torch.mm(rows, first.plain[expert].t())), second.plain[expert].t())


def int8_expert(rows: Tensor, first: Weights, second: Weights, expert: int) -> Tensor:
    """With rows that are quantised before each product, by a scale each."""
    return int8_product(_activated(int8_product(rows, first, expert)), second, expert)


def int8_product(rows: Tensor, weights: Weights, expert: int) -> Tensor:
    """bfloat16 [rows, to]."""
    values = rows.float()
    steps = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    numbers = (values / steps).round_().to(torch.int8)
    product = torch._int_mm(numbers, weights.numbers[expert].t())
    return (product.float() * steps * weights.scales[expert]).to(torch.bfloat16)


def _activated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def measure(experts: Experts, numbers_of_rows: list[int], rounds: int) -> list[ProductsRecord]:
    """Times of all experts with so many rows each; both kinds alternate, after a first round that does not count."""
    generator = torch.Generator().manual_seed(SEED)
    first = Weights.drawn(experts.number, 2 * experts.intermediate, experts.hidden, generator)
    second = Weights.drawn(experts.number, experts.hidden, experts.intermediate, generator)
    records = []
    for count in numbers_of_rows:
        rows = torch.randn(count, experts.hidden, generator=generator).to(torch.bfloat16)
        times: dict[Callable[..., Tensor], list[float]] = {plain_expert: [], int8_expert: []}
        for _ in range(1 + rounds):
            for multiply, taken in times.items():
                begin = time.perf_counter()
                for expert in range(experts.number):
                    multiply(rows, first, second, expert)
                taken.append(1000 * (time.perf_counter() - begin))
        plain, int8 = (statistics.median(taken[1:]) for taken in times.values())
        records.append(
            ProductsRecord(
                rows=count, bfloat16_ms=plain, int8_ms=int8, bfloat16_bytes=experts.bytes_read(16),
                int8_bytes=experts.bytes_read(8), rounds=rounds,
            )
        )  # fmt: skip
    return records
