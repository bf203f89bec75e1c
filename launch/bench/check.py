"""What has to arrive, computed by every rank for itself from the seed, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.routing import Batch, make_batch
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Variant

CHUNK_ROWS = 2048


class Quantised(NamedTuple):
    """values [rows, hidden] int8, scales [rows] float32."""

    values: Tensor
    scales: Tensor


def quantise(x: Tensor) -> Quantised:
    """As the exchange does it: scale = max / 127, value = x * (127 / max) rounded to even; zeros for a zero row."""
    wide = x.float()
    greatest = wide.abs().amax(dim=1)
    # Not `127 / greatest`, which torch computes as 127 * (1 / greatest), rounded twice.
    inverse = torch.where(greatest > 0, torch.full_like(greatest, 127) / greatest, 0)
    values = (wide * inverse[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Quantised(values, greatest / 127)


def travelled(x: Tensor, case: Case) -> Tensor:
    """Rows as they reach an expert: x itself, or what is left of it after int8, in bfloat16."""
    if case.dtype == "bf16":
        return x
    quantised = quantise(x)
    return (quantised.values.float() * quantised.scales[:, None]).bfloat16()


def exchange_problem(variant: Variant, case: Case, ranks: Ranks, batch: Batch) -> str | None:
    """Takes one batch through `variant` and compares rows and sums with those computed here; None if all are equal."""
    handle: Any = variant.dispatch(batch)
    arrived = variant.arrived(handle)
    problem = _row_problem(arrived, case, ranks.rank)
    # Everyone, also where rows are wrong: the others combine.
    _apply_experts(arrived, case, ranks.rank)
    combined = variant.combine(handle)
    return problem or _sum_problem(combined, batch, case)


def _row_problem(arrived: Arrived, case: Case, rank: int) -> str | None:
    for begin, expected in _expected_rows(case, rank):
        rows = slice(begin, begin + len(expected))
        if case.dtype == "int8":
            quantised = quantise(expected)
            if arrived.scales is None or not torch.equal(arrived.scales[rows], quantised.scales):
                return f"scales of rows {begin} to {rows.stop - 1} of rank {rank} are not those of their tokens"
            expected = quantised.values
        if not torch.equal(arrived.rows[rows], expected):
            wrong = (arrived.rows[rows] != expected).any(dim=1).nonzero()
            return f"row {begin + int(wrong[0])} of rank {rank} is not the token that belongs there"
    return None


def _expected_rows(case: Case, rank: int) -> Iterator[tuple[int, Tensor]]:
    """Chunks of what has to lie before the experts of `rank`, in (local expert, source, token, k) order."""
    local = case.experts // case.ranks
    batches = [make_batch(case, source) for source in range(case.ranks)]
    experts, sources, tokens = [], [], []
    for source, batch in enumerate(batches):
        token, k = torch.where(batch.ids // local == rank)
        experts.append(batch.ids[token, k])
        sources.append(torch.full_like(token, source))
        tokens.append(token)
    order = torch.sort(torch.cat(experts), stable=True).indices
    source_of, token_of = torch.cat(sources)[order], torch.cat(tokens)[order]
    for begin in range(0, len(order), CHUNK_ROWS):
        source, token = source_of[begin : begin + CHUNK_ROWS], token_of[begin : begin + CHUNK_ROWS]
        expected = torch.empty(len(source), case.hidden, dtype=torch.bfloat16)
        for peer, batch in enumerate(batches):
            expected[source == peer] = batch.x[token[source == peer]]
        yield begin, expected


def _factor(expert: Tensor) -> Tensor:
    """What the expert of that number multiplies rows by; different for neighbours."""
    return 1 + (expert % 13).float() / 16


def _apply_experts(arrived: Arrived, case: Case, rank: int) -> None:
    local = case.experts // case.ranks
    ids = torch.cat([make_batch(case, source).ids.flatten() for source in range(case.ranks)])
    of_row = torch.sort(ids[ids // local == rank]).values
    for begin in range(0, len(of_row), CHUNK_ROWS):
        rows = slice(begin, min(begin + CHUNK_ROWS, len(of_row)))
        values = arrived.rows[rows].float()
        if arrived.scales is not None:
            values = (values * arrived.scales[rows, None]).bfloat16().float()
        arrived.out[rows] = (values * _factor(of_row[rows])[:, None]).bfloat16()


def _sum_problem(combined: Tensor, batch: Batch, case: Case) -> str | None:
    chunk = max(1, CHUNK_ROWS // case.topk)
    for begin in range(0, case.tokens, chunk):
        tokens = slice(begin, begin + chunk)
        x = travelled(batch.x[tokens], case).float()
        total = torch.zeros_like(x)
        for k in range(case.topk):
            result = (x * _factor(batch.ids[tokens, k])[:, None]).bfloat16().float()
            total = total + batch.weights[tokens, k : k + 1] * result
        if not torch.equal(combined[tokens], total.bfloat16()):
            wrong = (combined[tokens] != total.bfloat16()).any(dim=1).nonzero()
            return f"the sum of token {begin + int(wrong[0])} is not that of its experts' results"
    return None
