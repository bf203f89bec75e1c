"""A layer's experts with weights of 16 bits and of 8, one after the other, in this process, as a host serves them."""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.serving.worker import host_experts

SEED = 1
# As SGLang tells a layer of gated experts without limits.
_CONFIG = SimpleNamespace(
    activation="silu", is_gated=True, gemm1_alpha=None, gemm1_clamp_limit=None, swiglu_limit=None,
    gate_up_interleaved=False,
)  # fmt: skip


class Experts(NamedTuple):
    """Of one of `ranks` ranks. hidden, intermediate: elements of a row, and of one between the two products. topk: of
    all experts, that a token has."""

    number: int
    hidden: int
    intermediate: int
    topk: int
    ranks: int

    def bytes_read(self, bits: int) -> int:
        """Of weights, and of scales of those of 8 bits, when every expert has rows."""
        numbers = 3 * self.hidden * self.intermediate
        scales = 4 * (2 * self.intermediate + self.hidden) if bits == 8 else 0
        return self.number * (numbers * bits // 8 + scales)


class ProductsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Medians over `rounds`, each of which routes the tokens of all ranks anew; rows: of this rank, and used: experts
    with rows, medians, too. Milliseconds for a layer; bytes are those of `Experts.bytes_read`."""

    tokens: int
    rows: int
    used: int
    bfloat16_ms: float
    int8_ms: float
    bfloat16_bytes: int
    int8_bytes: int
    rounds: int


class Layers(NamedTuple):
    """The same experts with weights in bfloat16 and in int8, as SGLang's `FusedMoE` has them."""

    plain: Any
    int8: Any

    @classmethod
    def drawn(cls, experts: Experts, generator: torch.Generator) -> Layers:
        plain, int8 = SimpleNamespace(moe_runner_config=_CONFIG), SimpleNamespace(moe_runner_config=_CONFIG)
        shapes = {
            "w13": (experts.number, 2 * experts.intermediate, experts.hidden),
            "w2": (experts.number, experts.hidden, experts.intermediate),
        }
        for prefix, shape in shapes.items():
            numbers = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
            scales = torch.rand(*shape[:2], 1, generator=generator) * shape[2] ** -0.5 / 64
            setattr(int8, f"{prefix}_weight", numbers)
            setattr(int8, f"{prefix}_weight_scale", scales)
            setattr(plain, f"{prefix}_weight", torch.empty(shape, dtype=torch.bfloat16))
            # Product by product: all in fp32 would take four times the memory.
            for number, scale, out in zip(numbers, scales, getattr(plain, f"{prefix}_weight"), strict=True):
                out.copy_(number * scale)
        return cls(plain, int8)


def routed_rows(experts: Experts, tokens: int, generator: torch.Generator) -> ExpertRows:
    """What a rank receives of `tokens` tokens of all ranks together, each of distinct experts that are equally likely.

    Nothing of it was exchanged.
    """
    scores = torch.rand(tokens, experts.number * experts.ranks, generator=generator)
    ids = scores.topk(experts.topk, dim=1).indices.flatten()
    counts = torch.bincount(ids[ids < experts.number], minlength=experts.number)
    rows = torch.randn(int(counts.sum()), experts.hidden, generator=generator).to(torch.bfloat16)
    return ExpertRows(rows, None, counts, torch.empty_like(rows), None)


def computed(layer: Any, rows: ExpertRows) -> Tensor:
    """What a host computes, [rows, hidden]."""
    host_experts.compute(layer, rows)
    return rows.out


def measure(experts: Experts, numbers_of_tokens: list[int], rounds: int) -> list[ProductsRecord]:
    """Times of a layer with so many tokens; both kinds alternate, after a first round that does not count."""
    generator = torch.Generator().manual_seed(SEED)
    layers = Layers.drawn(experts, generator)
    records = []
    for tokens in numbers_of_tokens:
        batches = [routed_rows(experts, tokens, generator) for _ in range(1 + rounds)]
        plain, int8 = _medians(layers, batches)
        records.append(
            ProductsRecord(
                tokens=tokens, rows=round(statistics.median(len(batch.rows) for batch in batches[1:])),
                used=round(statistics.median(int(batch.counts.count_nonzero()) for batch in batches[1:])),
                bfloat16_ms=plain, int8_ms=int8, bfloat16_bytes=experts.bytes_read(16),
                int8_bytes=experts.bytes_read(8), rounds=rounds,
            )
        )  # fmt: skip
    return records


def _medians(layers: Layers, batches: list[ExpertRows]) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for batch in batches:
            for layer, taken in zip(layers, times, strict=True):
                begin = time.perf_counter()
                computed(layer, batch)
                taken.append(1000 * (time.perf_counter() - begin))
    plain, int8 = (statistics.median(taken[1:]) for taken in times)
    return plain, int8
