"""What becomes of a server of SGLang with `--ascend-moe`: its command, and whether it would start.

Asks the functions that the server asks of its own flags. Not looked at are the machine, and files but for the config of
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, Unsupported, WindowTooSmall
from sglang_ascend_moe.exchange.control.network import parse_address
from sglang_ascend_moe.launch.adopt.changes import Change
from sglang_ascend_moe.launch.adopt.environment_changes import (
    DISPATCH_TOKENS,
    HCCL_BUFFER,
    ZBAL_MEMORY,
    Environment,
    change_environment,
)
from sglang_ascend_moe.launch.adopt.flag_changes import change_flags
from sglang_ascend_moe.launch.adopt.server_command import ServerCommand
from sglang_ascend_moe.launch.plan.memory_plan import MemoryPlan
from sglang_ascend_moe.launch.plan.moe_config import MoeShape
from sglang_ascend_moe.launch.plan.peer_memory import sgl_kernel_npu_bytes
from sglang_ascend_moe.launch.plan.plan_command import MIB
from sglang_ascend_moe.launch.plan.server_window import hccl_buffer_mb, plan_server_window
from sglang_ascend_moe.serving.launcher import given_flags, refusals
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.attention_groups import attention_groups
from sglang_ascend_moe.serving.launcher.conflicts import conflicts_of
from sglang_ascend_moe.serving.launcher.given_flags import Given
from sglang_ascend_moe.serving.options import ASK_FLAG, FLAGS, Options
from sglang_ascend_moe.serving.worker.moe_blocks import COMPARED_ARCHITECTURES
from sglang_ascend_moe.serving.worker.sizing import (
    SchedulerLimits,
    context_parallel,
    micro_batch,
    prefill_batch,
    tokens_of_request,
)

DIE_BYTES = 64 * 2**30
"""Memory of one die of an Ascend A3, which is a rank."""
NPU_CHUNK = 8192
"""What SGLang takes on NPUs of 64 GB for a `--chunked-prefill-size` that is not given."""


class Refusal(msgspec.Struct, frozen=True):
    """about: the flag, the variable, or `model`. message: the reason and what to do, as the server says it."""

    about: str
    message: str


class AdoptedWindow(msgspec.Struct, frozen=True):
    """Of each rank. tokens_per_rank: that one rank brings to one layer at most. bytes: of the window. rounds_even,
    rounds_worst: of a prefill batch, if all ranks receive alike, and at worst. in_place_of: bytes by what asked for
    them."""

    tokens_per_rank: int
    bytes: int
    rounds_even: int
    rounds_worst: int
    in_place_of: dict[str, int]


class Adoption(msgspec.Struct, frozen=True):
    """window: None where a note says why it is not known. A server without refusals would start."""

    command: list[str]
    environment: dict[str, str]
    changes: list[Change]
    refusals: list[Refusal]
    window: AdoptedWindow | None
    notes: list[str]


def adopt(server: ServerCommand, shape: MoeShape | None, device: str) -> Adoption:
    """shape: of the model, if its config is at hand. device: of servers that do not say theirs.

    Raises `InvalidInput` for flags that are none and for values that cannot be.
    """
    flags, changes = change_flags(server.flags, None if shape is None else shape.name)
    own = [word for word in flags if word != ASK_FLAG]
    settings = _read(own, device).settings
    shape = None if shape is None else _with_quantisation(shape, settings)
    quantised = _is_quantised(shape, settings)
    # HCCL's part depends on the window, and the window on the format of rows, which a variable may set.
    environment = change_environment(server.environment, quantised=quantised, hccl_mb=None)
    given = _read([*own, *environment.flags], device)
    window, refused, notes = _window(given, shape)
    if window is not None:
        environment = _with_hccl(server.environment, quantised, window, given.settings)
    return Adoption(
        command=[*server.program, *own, *environment.flags, ASK_FLAG],
        environment=environment.variables,
        changes=[*changes, *environment.changes],
        refusals=[*_refusals(given, environment.variables, shape), *refused],
        window=None if window is None else _beside(window, server.environment),
        notes=[*notes, *_window_notes(window), *_model_notes(shape)],
    )


def _read(words: list[str], device: str) -> Given:
    given = given_flags.read_strictly([*words, ASK_FLAG])
    given.settings.device = given.settings.device or device
    if given.settings.model_path is None:
        raise InvalidInput("--model-path is missing: the command names no model")
    return given


def _refusals(given: Given, environment: Mapping[str, str], shape: MoeShape | None) -> list[Refusal]:
    settings, options = given.settings, given.options or Options()
    refusals.refuse_sizes(settings)
    if settings.dist_init_addr:
        parse_address(settings.dist_init_addr)
    found = [Refusal(one.flag, one.refusal(settings)) for one in conflicts_of(settings, environment)]
    device = device_of(settings)

    def add(about: str, check: Callable[[], None]) -> None:
        try:
            check()
        except AscendMoeError as error:
            found.append(Refusal(about or str(error).split(" ")[0].rstrip(":"), str(error)))

    add("", lambda: refusals.refuse_options(options, device))
    add("", lambda: refusals.refuse_nodes(settings))
    add("", lambda: refusals.refuse_combinations(settings, options))
    if shape is not None:
        division = refusals.Division(settings.tp_size, settings.ep_num_redundant_experts, shown_as="--tp-size")
        model = shape.model(settings.model_path)
        add("model", lambda: refusals.refuse_model(model, division, on_npu=device == "npu"))
    return found


def _with_quantisation(shape: MoeShape, settings: Any) -> MoeShape:
    """`--quantization` says it for a model that does not."""
    if settings.quantization is None:
        return shape
    return shape._replace(quantisation=None if settings.quantization == "unquant" else settings.quantization)


def _is_quantised(shape: MoeShape | None, settings: Any) -> bool:
    named = settings.quantization if shape is None else shape.quantisation
    return named in refusals.NPU_QUANTISATIONS


def _window(given: Given, shape: MoeShape | None) -> tuple[MemoryPlan | None, list[Refusal], list[str]]:
    """The window, or why the server refuses it, or why it is not known."""
    settings, options = given.settings, given.options or Options()
    limits = _limits(settings, shape)
    if shape is None or isinstance(limits, str):
        return None, [], [f"the bytes of the window are not known: {limits}"] if isinstance(limits, str) else []
    device_bytes = DIE_BYTES if device_of(settings) == "npu" else None
    try:
        return plan_server_window(shape, settings, options, limits, device_bytes), [], []
    except WindowTooSmall as error:
        return None, [Refusal("--ascend-moe-window-bytes", str(error))], []
    except (InvalidInput, Unsupported) as error:
        return None, [], [f"the bytes of the window are not known: {error}"]


def _limits(settings: Any, shape: MoeShape | None) -> SchedulerLimits | str:
    """The largest batches of an attention group; in words what is missing to know them."""
    groups = attention_groups(settings)
    context = settings.context_length or (shape.context if shape is not None else None)
    chunk = NPU_CHUNK if settings.chunked_prefill_size is None else settings.chunked_prefill_size
    role = settings.disaggregation_mode
    if role != "prefill" and settings.max_running_requests is None:
        return "SGLang chooses --max-running-requests by the memory that is left; give it"
    if role != "decode" and chunk <= 0 and context is None:
        return "without chunks a batch is as long as the longest request; give --context-length"
    stages = settings.pp_size
    prefill, flag = prefill_batch(
        chunk // groups if chunk > 0 else chunk,
        settings.max_prefill_tokens,
        context or 0,
        dynamic=settings.enable_dynamic_chunking and stages > 1,
    )
    running = (settings.max_running_requests or groups) // groups
    batch = micro_batch(running, pp_size=stages, asked=settings.pp_max_micro_batch_size, role=role)
    context_ranks, drafts = context_parallel(settings), tokens_of_request(settings)
    ranks = max(1, settings.tp_size // (groups * context_ranks.ranks))
    return SchedulerLimits(batch, prefill, flag, ranks, role, drafts, stages, context_ranks)


def _with_hccl(given: Mapping[str, str], quantised: bool, window: MemoryPlan, settings: Any) -> Environment:
    groups = attention_groups(settings) * settings.attn_cp_size
    needed = hccl_buffer_mb(window, max(1, settings.tp_size // groups))
    return change_environment(given, quantised=quantised, hccl_mb=needed)


def _beside(plan: MemoryPlan, given: Mapping[str, str]) -> AdoptedWindow:
    p = plan.parameters
    replaced = {}
    for name in (HCCL_BUFFER, *ZBAL_MEMORY):
        if given.get(name, "").isdecimal():
            replaced[f"{name}={given[name]}"] = int(given[name]) * MIB
    tokens = given.get(DISPATCH_TOKENS, "")
    if tokens.isdecimal():
        # What sgl-kernel-npu checks that the buffer of HCCL holds.
        size = sgl_kernel_npu_bytes(p.ranks, p.num_experts, p.hidden, int(tokens), p.topk)
        replaced[f"{DISPATCH_TOKENS}={tokens}"] = size
    return AdoptedWindow(p.max_tokens, plan.memory.total, plan.rounds_even, plan.rounds_worst, replaced)


def _window_notes(plan: MemoryPlan | None) -> list[str]:
    if plan is None or plan.memory.total < DIE_BYTES:
        return []
    flag = FLAGS["window_bytes"].flag
    return [f"no die of an A3 has memory for this window; give a smaller {flag}, or let the server choose"]


def _model_notes(shape: MoeShape | None) -> list[str]:
    if shape is None:
        return ["the model was not looked at; --model-config PATH gives its config.json or folder"]
    if shape.name in COMPARED_ARCHITECTURES:
        return []
    return [
        f"{shape.name} was never compared with stock SGLang: a server looks at its MoE blocks when the model is loaded,"
        " and refuses those that it does not know"
    ]
