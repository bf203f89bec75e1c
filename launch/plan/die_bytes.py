"""What a rank of a server keeps in memory: weights as start-up counts them, windows as exchanges open them."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec

from sglang_ascend_moe.launch.plan.machine_times import Machine, Schedule
from sglang_ascend_moe.launch.plan.model_work import ModelWork, weights_of
from sglang_ascend_moe.launch.plan.moe_config import MoeShape
from sglang_ascend_moe.launch.plan.peer_memory import sgl_kernel_npu_bytes
from sglang_ascend_moe.launch.plan.server_window import plan_server_window
from sglang_ascend_moe.launch.plan.step_time import Placement
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import Role, SchedulerLimits


class DieBytes(msgspec.Struct, frozen=True):
    """Of one rank. left: for keys and values, negative if the rest does not fit. tokens: whose keys and values fit, of
    all attention groups of the server together."""

    weights: int
    windows: int
    other: int
    left: int
    tokens: int


def die_bytes(
    work: ModelWork, machine: Machine, place: Placement, schedule: Schedule, limits: SchedulerLimits, memory: int
) -> DieBytes:
    """limits: of one attention group. memory: of the rank."""
    drafting = int(place.drafts > 0)
    layers = work.sizes.layers + drafting
    weights = weights_of(work, place.weights, on_npu=not machine.shared)
    # A draft is one more layer with experts.
    own = weights.on_host(place.tp, place.dp) * layers // (work.sizes.layers * place.tp)
    windows = _windows(work, place, schedule, limits, machine)
    left = memory - own - windows - machine.other_bytes
    token = layers * work.sizes.layer_token_bytes(place.attention_ranks)
    return DieBytes(own, windows, machine.other_bytes, left, max(0, left // token) * place.dp)


def _windows(work: ModelWork, place: Placement, schedule: Schedule, limits: SchedulerLimits, machine: Machine) -> int:
    """Of relay buffers: what sgl-kernel-npu's low-latency code checks for, or what recipes give those of prefill."""
    if place.tp == 1:
        return 0
    if schedule == "buffer-centric":
        decode = sgl_kernel_npu_bytes(
            place.tp, work.experts, work.sizes.hidden, limits.decode_tokens_per_rank, work.topk
        )
        return max(decode, 0 if limits.role == "decode" else machine.relay_bytes)
    shape = MoeShape(work.name, work.sizes.hidden, work.experts, work.topk, work.sizes.dtype)
    settings = SimpleNamespace(tp_size=place.tp, ep_num_redundant_experts=0)
    options = Options(quant="none" if place.rows == "bf16" else "int8")
    return plan_server_window(shape, settings, options, limits, machine.memory).memory.total


def limits_of(role: Role, place: Placement, chunk: int, running: int) -> SchedulerLimits:
    """Of one attention group. chunk, running: of the server, of which SGLang gives each group its part."""
    return SchedulerLimits(
        max(1, running // place.dp), max(1, chunk // place.dp), "--chunked-prefill-size", place.attention_ranks, role,
        1 + place.drafts,
    )  # fmt: skip
