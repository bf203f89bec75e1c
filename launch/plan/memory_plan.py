"""What one rank maps for a configuration, laid out without allocating it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from sglang_ascend_moe.errors import WindowTooSmall
from sglang_ascend_moe.launch.plan.sizes import exactly
from sglang_ascend_moe.windows.layout import (
    ExchangeParameters,
    WindowMemory,
    bytes_for_capacity,
    expected_rounds,
    plan_window,
    window_memory,
)

Role = Literal["prefill", "decode", "both"]


class MemoryPlan(msgspec.Struct, frozen=True):
    """What one rank maps, and how many rounds a prefill chunk takes in it.

    decode_tokens: tokens per rank that fit into one round whatever their routing. `rounds_worst`: rounds of
    `max_tokens` tokens per rank whatever their routing; `rounds_even`: if every rank receives the same. expert_bytes:
    of the routed experts of a rank in the format that they are served in; None where no weights can be read. stages: of
    a pipeline, each with as many ranks.
    """

    model: str
    role: Role
    parameters: ExchangeParameters
    memory: WindowMemory
    decode_tokens: int
    rounds_worst: int
    rounds_even: int
    expert_bytes: int | None = None
    stages: int = 1


class Request(NamedTuple):
    """The question, with nothing left open. `decode_tokens` have to fit into one round. expert_bytes: see
    `MemoryPlan`."""

    model: str
    role: Role
    parameters: ExchangeParameters
    decode_tokens: int
    expert_bytes: int | None = None
    stages: int = 1


def plan_memory(request: Request) -> MemoryPlan:
    """Lays the window out without allocating it.

    Raises `InvalidInput`, `Unsupported`, and `WindowTooSmall` if `decode_tokens` may need more than one round.
    """
    p = request.parameters
    layout = plan_window(p)
    per_token = p.ranks * p.rows_per_token
    fitting = layout.capacity // per_token
    if fitting < request.decode_tokens:
        needed = bytes_for_capacity(p, request.decode_tokens * per_token)
        raise WindowTooSmall(
            f"--window-bytes {p.window_bytes}: a decode step of {request.decode_tokens} tokens per rank needs"
            f" {exactly(needed)}. Raise it to {needed}, or lower --decode-tokens (or --max-tokens) to {fitting}"
        )
    rounds = expected_rounds(p, layout.capacity)
    return MemoryPlan(
        model=request.model,
        role=request.role,
        parameters=p,
        memory=window_memory(layout),
        decode_tokens=fitting,
        rounds_worst=rounds.worst,
        rounds_even=rounds.alike,
        expert_bytes=request.expert_bytes,
        stages=request.stages,
    )
