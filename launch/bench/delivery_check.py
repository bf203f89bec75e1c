"""What has to arrive, computed by every rank for itself from the seed, bit for bit."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.drawn_routing import Batch, make_ids, token_slices, traffic
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Variant

CHUNK_ROWS = 2048


class Quantised(NamedTuple):
    """values [rows, hidden] int8, scales [rows] float32."""

    values: Tensor
    scales: Tensor


def quantise(x: Tensor) -> Quantised:
    """As the exchange does it: scale = max / 127, value = x * (127 / max) rounded to even; zeros for a zero row."""
    parts = [_quantise(rows) for rows in x.split(CHUNK_ROWS)]
    return parts[0] if len(parts) == 1 else Quantised(*map(torch.cat, zip(*parts, strict=True)))


def _quantise(x: Tensor) -> Quantised:
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
    blocks = _blocks(case, ranks.rank)
    problem = _row_problem(arrived, blocks, case, ranks.rank)
    # Everyone, also where rows are wrong: the others combine.
    _apply_experts(arrived, blocks)
    del arrived
    variant.computed(handle)
    combined = variant.combine(handle)
    return problem or _sum_problem(combined, batch, case)


class _Block(NamedTuple):
    """The rows of one expert: where they begin and how many they are."""

    expert: int
    begin: int
    rows: int


def _blocks(case: Case, rank: int) -> list[_Block]:
    """Of the experts of `rank`, one after the other."""
    local = case.experts // case.ranks
    counts = traffic(case).sum(dim=0)[rank * local : (rank + 1) * local].tolist()
    begins = [0, *accumulate(counts)][:-1]
    return [
        _Block(rank * local + place, begin, count)
        for place, (begin, count) in enumerate(zip(begins, counts, strict=True))
    ]


def _row_problem(arrived: Arrived, blocks: list[_Block], case: Case, rank: int) -> str | None:
    for source, places in enumerate(_places(case, blocks)):
        for first, tokens in token_slices(case, source):
            token, k = torch.where(places[first : first + len(tokens)] >= 0)
            place = places[first + token, k]
            if case.dtype == "int8":
                quantised = quantise(tokens)
                if arrived.scales is None or not torch.equal(arrived.scales[place], quantised.scales[token]):
                    return f"scales of tokens of rank {source} are wrong at rank {rank}"
                tokens = quantised.values
            found = arrived.rows[place]
            if not torch.equal(found, tokens[token]):
                wrong = place[(found != tokens[token]).any(dim=1)]
                return f"row {int(wrong[0])} of rank {rank} is not the token that belongs there"
    return None


def _places(case: Case, blocks: list[_Block]) -> Tensor:
    """int64 [ranks, tokens, topk]: the row of each token for each of its experts, -1 where `blocks` have not that
    expert. Rows of an expert lie in (source, token, k) order."""
    ids = torch.stack([make_ids(case, source) for source in range(case.ranks)])
    places = torch.full_like(ids, -1)
    for block in blocks:
        places[ids == block.expert] = torch.arange(block.begin, block.begin + block.rows)
    return places


def _factor(expert: Tensor) -> Tensor:
    """What the expert of that number multiplies rows by; different for neighbours."""
    return 1 + (expert % 13).float() / 16


def _apply_experts(arrived: Arrived, blocks: list[_Block]) -> None:
    for expert, begin, count in blocks:
        factor = _factor(torch.tensor(expert))
        for first in range(begin, begin + count, CHUNK_ROWS):
            rows = slice(first, min(first + CHUNK_ROWS, begin + count))
            values = arrived.rows[rows].float()
            if arrived.scales is not None:
                values = (values * arrived.scales[rows, None]).bfloat16().float()
            arrived.out[rows] = (values * factor).bfloat16()


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
