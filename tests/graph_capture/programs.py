"""Random steps for tapes: operators of every kind that a model's decode step is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

ROWS, WIDTH, SLOTS = 4, 16, 12

Inputs = dict[str, Tensor]
Instruction = Callable[[list[Tensor], Inputs], Tensor]


def fresh_inputs(seed: int) -> Inputs:
    """Everything a program reads or writes and did not make: activations, ids, weights, and a cache it writes into."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(ROWS, WIDTH, generator=draw).bfloat16(),
        "weight": torch.randn(WIDTH, WIDTH, generator=draw).bfloat16(),
        "ids": torch.randint(0, SLOTS, (ROWS,), generator=draw),
        "cache": torch.randn(SLOTS, WIDTH, generator=draw).bfloat16(),
        "lengths": torch.randint(1, SLOTS, (ROWS,), generator=draw),
    }


def _attend(values: list[Tensor], inputs: Inputs) -> Tensor:
    keys = inputs["cache"].index_select(0, torch.arange(SLOTS)).view(1, 1, SLOTS, WIDTH)
    mask = torch.zeros(ROWS, SLOTS, dtype=torch.bfloat16)
    mask.masked_fill_(torch.arange(SLOTS)[None] >= inputs["lengths"][:, None], float("-inf"))
    query = values[-1].view(ROWS, 1, 1, WIDTH)
    keys = keys.expand(ROWS, 1, SLOTS, WIDTH)
    return F.scaled_dot_product_attention(query, keys, keys, attn_mask=mask[:, None, None]).reshape(ROWS, WIDTH)


def _normalise(values: list[Tensor], _: Inputs) -> Tensor:
    wide = values[-1].float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(torch.bfloat16)


def _route(values: list[Tensor], _: Inputs) -> Tensor:
    chances = torch.softmax(values[-1].float(), dim=-1)
    weights, chosen = torch.topk(chances, 3)
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(values[-1]).scatter_(1, chosen, weights.to(torch.bfloat16))


def _write_cache(values: list[Tensor], inputs: Inputs) -> Tensor:
    # One row of a slot at most, as slots of a cache are written.
    inputs["cache"][inputs["ids"][:1]] = values[-1][:1]
    return inputs["cache"][inputs["ids"]]


def _constant(values: list[Tensor], _: Inputs) -> Tensor:
    total = torch.tensor([0.5] * WIDTH).bfloat16()
    total += values[-1][0]
    return values[-1] + total


def _in_place(values: list[Tensor], _: Inputs) -> Tensor:
    changed = values[-1].clone()
    changed[:, ::2] *= 0.5
    changed.add_(values[0]).clamp_(-4, 4)
    return changed


def _turned(values: list[Tensor], _: Inputs) -> Tensor:
    return values[-1].t().contiguous().view(WIDTH, ROWS).t().chunk(2, dim=1)[0].repeat(1, 2)


INSTRUCTIONS: dict[str, Instruction] = {
    "linear": lambda values, inputs: F.linear(values[-1], inputs["weight"]),
    "residual": lambda values, inputs: values[-1] + inputs["x"],
    "gate": lambda values, _: F.silu(values[-1]) * values[0],
    "embed": lambda values, inputs: values[-1] + F.embedding(inputs["ids"], inputs["cache"]),
    "join": lambda values, _: torch.cat([values[-1][:, : WIDTH // 2], values[0][:, WIDTH // 2 :]], dim=1),
    "where": lambda values, _: torch.where(values[-1] > 0, values[-1], values[0].new_full((), -0.25)),
    "attend": _attend,
    "normalise": _normalise,
    "route": _route,
    "write cache": _write_cache,
    "constant": _constant,
    "in place": _in_place,
    "turned": _turned,
}

programs = st.lists(st.sampled_from(sorted(INSTRUCTIONS)), min_size=1, max_size=12)


def run(program: list[str], inputs: Inputs) -> dict[str, Any]:
    """The step: applies each instruction to the values so far; returns the last value and a view of an earlier one."""
    values = [inputs["x"] * 1.0]
    for name in program:
        values.append(INSTRUCTIONS[name](values, inputs))
    return {"last": values[-1], "middle": values[len(values) // 2][1:], "cache": inputs["cache"]}
