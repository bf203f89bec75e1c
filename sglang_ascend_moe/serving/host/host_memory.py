"""The memory of a host, divided among the ranks that serve on it: hooks of `host_hooks`.

SGLang gives each rank its share of a whole device, which on a host is the whole machine, and writes zeros into all of
it. Here the launcher refuses a model that cannot fit before anything of it is loaded; each rank takes its part of what
is left then, and only as much as the scheduler can use; and pages are taken when they are written.
"""

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from sglang_ascend_moe.serving.host.memory_share import (
    GIB,
    HOST_RUNNING_REQUESTS,
    MemoryLeft,
    RankNeeds,
    Scheduling,
    ServerEstimate,
    division_in_words,
    http_bytes,
    keys_values_bytes,
    memory_left,
    rank_needs,
    refuse_server_that_does_not_fit,
    refuse_too_few_tokens,
)
from sglang_ascend_moe.serving.host.reservations import Exclusive, Reservation, outstanding, touched
from sglang_ascend_moe.serving.host.server_estimate import (
    ModelSizes,
    ServerSizes,
    draft_folder,
    estimate_server,
    graph_bytes,
    model_sizes,
)
from sglang_ascend_moe.serving.host.untouched_memory import UntouchedZeros
from sglang_ascend_moe.serving.launcher import command_line, resolution
from sglang_ascend_moe.serving.launcher.attention_groups import (
    attention_groups,
    data_parallel_ranks,
    model_replicas,
)
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT
from sglang_ascend_moe.serving.launcher.node_meeting import server_name
from sglang_ascend_moe.serving.machine_limits import read_limits
from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.worker.layer import batch_limits, window_bytes
from sglang_ascend_moe.serving.worker.sizing import context_parallel, tokens_of_request

logger = logging.getLogger(__name__)

# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_memory"
_numbers = itertools.count()


class ServerMemory(msgspec.Struct, frozen=True):
    """What a rank has to know of its server. group: of the reservations of all its processes. launcher: its process.

    before: bytes that the launcher and its children had in memory before it started the ranks.
    """

    group: str
    launcher: int
    before: int


class _RankPlan(msgspec.Struct, frozen=True):
    """What this rank has found out when it is about to allocate keys and values."""

    left: MemoryLeft
    ranks: int
    needs: RankNeeds
    scheduling: Scheduling
    keys_values: int


_starting: Reservation | None = None
"""In the launcher, while a server starts: for all its processes, until each has a reservation of its own."""
_serving: Reservation | None = None
"""In a rank."""
_plan: _RankPlan | None = None
"""In a rank, from when it knows its part."""
_profiling = False
"""While SGLang sizes keys and values: it asks for free memory then, and is told the part of this rank."""


def limit_running_requests(server_args: Any) -> None:
    """Before `ServerArgs.resolve_once`: a number of requests that suits a host, unless the user names one."""
    if server_args.max_running_requests is None and not resolution.is_resolved(server_args):
        resolution.declare(server_args, max_running_requests=HOST_RUNNING_REQUESTS)


def reserve_for_server(_engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """Before `Engine._launch_scheduler_processes`: a server that cannot fit is refused, another has its place.

    Raises `Unsupported`.
    """
    global _starting
    release_start()
    estimate = _estimate(server_args)
    group = server_name(server_args) or f"{os.getpid()}.{next(_numbers)}"
    memory = ServerMemory(group, os.getpid(), touched(os.getpid()))
    setattr(server_args, _ATTRIBUTE, memory)
    if server_args.node_rank:
        # Node 0 reserves for all nodes, which are on this machine.
        return
    with Exclusive():
        http = http_bytes(server_args.tokenizer_worker_num)
        left = memory_left(read_limits(), outstanding(), _asked(server_args), http)
        wanted = left.usable
        if estimate is not None:
            with command_line.refusals_end(server_args, CANNOT):
                refuse_server_that_does_not_fit(estimate, left, str(server_args.model_path))
            wanted = min(wanted, estimate.most)
        _starting = Reservation(memory.group, memory.before + wanted)


def release_start(*_: Any) -> None:
    """After `_wait_for_scheduler_ready`: every rank has reserved what it needs."""
    global _starting
    if _starting is not None:
        _starting.close()
        _starting = None


def _asked(server_args: Any) -> int | None:
    options = options_of(server_args)
    return None if options is None else options.host_memory


def _estimate(server_args: Any) -> ServerEstimate | None:
    """None for a model whose configuration does not say its sizes."""
    model = _model_sizes(server_args)
    server = _server_sizes(server_args)
    return None if model is None else estimate_server(model, server, options_of(server_args))


def _model_sizes(server_args: Any) -> ModelSizes | None:
    config = resolution.model_config_of(server_args)
    text = config.hf_text_config
    return model_sizes(
        Path(config.model_path),
        lambda name: getattr(text, name, None),
        dtype=str(config.dtype).removeprefix("torch."),
        context=config.context_len,
    )


def _server_sizes(server_args: Any) -> ServerSizes:
    settings = resolution.settings_of(server_args)
    chunked = settings.chunked_prefill_size
    return ServerSizes(
        tp=settings.tp_size,
        attention_groups=attention_groups(settings),
        context=context_parallel(settings),
        replicas=model_replicas(settings),
        running=settings.max_running_requests,
        prefill_tokens=chunked if chunked and chunked > 0 else settings.max_prefill_tokens,
        redundant_experts=settings.ep_num_redundant_experts,
        graph_batch=_graph_batch(server_args, settings),
        role=settings.disaggregation_mode,
        request_tokens=tokens_of_request(settings),
        draft_folder=draft_folder(settings),
        stages=settings.pp_size,
        micro_batch=settings.pp_max_micro_batch_size,
    )


def _graph_batch(server_args: Any, settings: Any) -> int | None:
    """The largest batch that the user wants graphs for."""
    from sglang.srt.model_executor.cuda_graph_config import Phase

    if settings.disable_cuda_graph or settings.disaggregation_mode == "prefill":
        return 0
    decode = settings.cuda_graph_config.decode
    given: set[tuple[Phase, str]] = getattr(server_args, "_cuda_graph_config_locked", set())
    if (Phase.DECODE, "bs") in given:
        return max(decode.bs)
    return decode.max_bs if (Phase.DECODE, "max_bs") in given else None


def rank_budget(original: Callable[..., int], configurator: Any, *_: Any, **__: Any) -> int:
    """Around `KVCacheConfigurator._profile_available_bytes`: the part of this rank for keys and values.

    Raises `Unsupported` if there is none.
    """
    global _plan, _profiling
    from sglang.srt.runtime_context import get_parallel, get_schedule, get_spec

    parallel, server_args = get_parallel(), configurator.server_args
    ranks = parallel.launch_world_size * data_parallel_ranks(parallel) // parallel.attn_dp_size
    scheduling = Scheduling(
        running=max(1, get_schedule().max_running_requests // parallel.attn_dp_size),
        context=configurator.model_config.context_len,
        vocabulary=configurator.model_config.vocab_size,
        request_tokens=tokens_of_request(get_spec()),
    )
    options = options_of(server_args)
    limits = batch_limits(scheduling.running, configurator.model_config.context_len)
    windows = 0 if options is None else window_bytes(configurator.model, options, limits)
    model = _model_sizes(server_args)
    graphs = 0 if model is None else graph_bytes(model, _server_sizes(server_args))
    needs = rank_needs(scheduling, windows, graphs)
    left = _least_left(server_args)
    budget = keys_values_bytes(left, ranks, needs, server_args.mem_fraction_static)
    if budget <= 0:
        refuse_too_few_tokens(0, left, ranks, needs, scheduling.least_tokens)
    _plan = _RankPlan(left, ranks, needs, scheduling, budget)
    _profiling = True
    try:
        return original(configurator, 0.0)
    finally:
        _profiling = False


def _least_left(server_args: Any) -> MemoryLeft:
    """What the rank that looked last has found: by then all have loaded their weights."""
    from sglang.srt.runtime_context import get_parallel

    # A benchmark of SGLang's runners has no launcher.
    memory: ServerMemory | None = getattr(server_args, _ATTRIBUTE, None)
    asked = _asked(server_args)
    if memory is not None and asked is not None:
        asked -= touched(memory.launcher) - memory.before
    others = outstanding(except_group=None if memory is None else memory.group)
    left = memory_left(read_limits(), others, asked, http_bytes(server_args.tokenizer_worker_num))
    group = get_parallel().world_group.cpu_group
    everyone = [left] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyone, left, group=group)
    return min(everyone, key=lambda item: item.usable)


def available_for_keys_values(original: Callable[..., float], *arguments: Any, **keywords: Any) -> float:
    """Around `get_available_gpu_memory` where keys and values are sized: GiB of this rank's part."""
    if not _profiling or _plan is None:
        return original(*arguments, **keywords)
    return _plan.keys_values / GIB


def tokens_that_can_be_used(original: Callable[..., int], configurator: Any, token_capacity: int) -> int:
    """Around `KVCacheConfigurator._apply_token_constraints`: no more than the largest batch, no less than is of use.

    Raises `Unsupported` if there is room for too few.
    """
    tokens = original(configurator, token_capacity)
    if _plan is None:
        return tokens
    refuse_too_few_tokens(token_capacity, _plan.left, _plan.ranks, _plan.needs, _plan.scheduling.least_tokens)
    return min(tokens, _plan.scheduling.most_tokens)


def allocate_untouched(original: Callable[..., Any], configurator: Any, **keywords: Any) -> Any:
    """Around `KVCacheConfigurator.configure`: pages are taken when they are used, and reserved for it until then."""
    global _serving
    from sglang.srt.runtime_context import get_parallel

    with UntouchedZeros() as zeros:
        result = original(configurator, **keywords)
    memory = getattr(configurator.server_args, _ATTRIBUTE, None)
    if memory is None or _plan is None:
        return result
    untouched = zeros.allocated + _plan.needs.windows + _plan.needs.graphs + _plan.needs.working
    if _serving is not None:
        # Keys and values of a draft model are allocated after those of the model: one reservation is for both.
        _serving.close()
        untouched = zeros.allocated + _serving.size - touched(os.getpid())
    _serving = Reservation(memory.group, touched(os.getpid()) + untouched)
    if get_parallel().launch_world_rank == 0 and not configurator.is_draft_worker:
        logger.info("%s", _division(_plan, configurator, result))
    return result


def _division(plan: _RankPlan, configurator: Any, result: Any) -> str:
    from sglang.srt.runtime_context import get_schedule

    scheduling, tokens = plan.scheduling, result.max_total_num_tokens
    if tokens >= scheduling.most_tokens:
        why = f"as many as {scheduling.running} requests of {scheduling.context} tokens can use"
    elif tokens == get_schedule().max_total_tokens:
        why = "--max-total-tokens"
    else:
        why = f"all that is left; {scheduling.running} requests of {scheduling.context} tokens could use more"
    model = configurator.model
    return division_in_words(
        plan.left,
        plan.ranks,
        weights=sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers())),
        needs=plan.needs,
        keys_values=round(result.token_to_kv_pool.mem_usage * GIB),
        tokens=tokens,
        why=why,
    )
