"""The window of a server's ranks, from its flags and the config of its model: as it is laid out when exchanges open."""

from __future__ import annotations

from typing import Any

import msgspec

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.plan.moe_config import MoeShape
from sglang_ascend_moe.launch.plan.plan_command import MemoryPlan, Request, Role, plan_memory
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits, check_window, tokens_per_rank
from sglang_ascend_moe.windows.layout import ELEMENT_BYTES, ExchangeParameters, plan_window

# HCCL's own default, in MB.
HCCL_BUFFER_MB = 200
MB = 10**6


def plan_server_window(
    shape: MoeShape, settings: Any, options: Options, limits: SchedulerLimits, role: Role
) -> MemoryPlan:
    """settings: by the names that SGLang's server arguments have.

    Raises `InvalidInput` and `WindowTooSmall` as a server does when it opens its exchanges.
    """
    hidden, experts, topk = shape.hidden, shape.experts, shape.topk
    if hidden is None or experts is None or topk is None:
        unknown = [part for part in ("hidden", "experts", "topk") if getattr(shape, part) is None]
        raise InvalidInput(f"--model-config: it does not say {', '.join(unknown)} of {shape.name}")
    parameters = ExchangeParameters(
        ranks=settings.tp_size,
        num_experts=experts + settings.ep_num_redundant_experts,
        hidden=hidden,
        max_tokens=tokens_per_rank(options, limits),
        topk=topk,
        dtype=shape.dtype if shape.dtype in ELEMENT_BYTES else "bfloat16",
        quant=None if options.quant == "none" else options.quant,
        distinct_topk=True,
        window_bytes=options.window_bytes,
    )

    def bytes_for(tokens: int) -> int:
        return plan_window(msgspec.structs.replace(parameters, max_tokens=tokens, window_bytes=None)).total_bytes

    check_window(options, limits, bytes_for)
    return plan_memory(Request(shape.name, role, parameters, limits.decode_tokens_per_rank or 1))


def hccl_buffer_mb(plan: MemoryPlan, attention_ranks: int) -> int:
    """What HCCL still needs: the rows of one attention group pass through it; those of experts go through windows."""
    p = plan.parameters
    rows = p.max_tokens * attention_ranks * p.hidden * ELEMENT_BYTES[p.dtype]
    return max(HCCL_BUFFER_MB, -(-rows // MB))
