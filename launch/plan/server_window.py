"""The window of a server's ranks, from its flags and the config of its model: as it is laid out when exchanges open."""

from __future__ import annotations

from typing import Any

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.plan.memory_plan import MemoryPlan, Request, Role, plan_memory
from sglang_ascend_moe.launch.plan.moe_config import MoeShape
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits, sized, tokens_per_rank
from sglang_ascend_moe.windows.layout import ELEMENT_BYTES, ExchangeParameters

# HCCL's own default, in MB.
HCCL_BUFFER_MB = 200
MB = 10**6


def plan_server_window(
    shape: MoeShape, settings: Any, options: Options, limits: SchedulerLimits, device_bytes: int | None = None
) -> MemoryPlan:
    """settings: by the names that SGLang's server arguments have. device_bytes: memory of an NPU, if it is known.

    Raises `InvalidInput` and `WindowTooSmall` as a server does when it opens its exchanges.
    """
    role: Role = "both" if limits.role == "null" else limits.role
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
    )
    parameters = sized(parameters, options, limits, device_bytes)
    return plan_memory(Request(shape.name, role, parameters, limits.decode_tokens_per_rank or 1))


def hccl_buffer_mb(plan: MemoryPlan, attention_ranks: int) -> int:
    """What HCCL still needs: the rows of one attention group pass through it; those of experts go through windows."""
    p = plan.parameters
    rows = p.max_tokens * attention_ranks * p.hidden * ELEMENT_BYTES[p.dtype]
    return max(HCCL_BUFFER_MB, -(-rows // MB))
