"""Decode graphs in SGLang on the host: which graphs there are, and what happens when a step cannot be captured.

Functions whose description begins with Before, Around or In place of are hooks: see `runner_hooks`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.graph_capture.runners.eager import nothing_captured, refused_drafts, refused_steps, switched_off
from sglang_ascend_moe.serving.host.graph_buckets import Buckets, Limits, choose_buckets, within
from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.worker import layer
from sglang_ascend_moe.serving.worker.gathered_batches import batch_multiple

logger = logging.getLogger(__name__)


def buckets_of(model_runner: Any) -> Buckets:
    """Batch sizes and lengths of the graphs of a worker whose memory pools exist.

    SGLang's flags `--cuda-graph-bs-decode` and `--cuda-graph-max-bs-decode` go before the choice made here.
    """
    from sglang.srt.model_executor.cuda_graph_config import Phase
    from sglang.srt.runtime_context import get_exec, get_spec

    pool = model_runner.token_to_kv_pool
    first = model_runner.layer_info.start_layer
    token_bytes = sum(
        cache[0].numel() * cache.element_size() for cache in (pool.get_key_buffer(first), pool.get_value_buffer(first))
    )
    if model_runner.is_draft_worker:
        # Each branch of a draft gathers what its request has.
        token_bytes *= get_spec().speculative_eagle_topk
    table = model_runner.req_to_token_pool
    decode = get_exec().graph.cuda_graph_config.decode
    given: set[tuple[Phase, str]] = getattr(model_runner.server_args, "_cuda_graph_config_locked", set())
    most = layer.decode_batch(table.size)
    if (Phase.DECODE, "max_bs") in given:
        most = min(most, decode.max_bs)
    limits = Limits(
        requests=most,
        alignment=batch_multiple(),
        length=min(table.req_to_token.shape[1], model_runner.max_total_num_tokens),
        token_bytes=token_bytes,
    )
    chosen = choose_buckets(limits)
    if (Phase.DECODE, "bs") not in given:
        return chosen
    asked = within(decode.bs, limits.largest_batch)
    return chosen._replace(batches=tuple(asked), bytes=max(asked) * limits.length * token_bytes)


def make_attention(model_runner: Any) -> Any:
    """SGLang's attention backend `ascend_moe_host`."""
    from sglang_ascend_moe.graph_capture.runners.attention import HostAttention

    return HostAttention(model_runner, buckets_of(model_runner))


def set_buckets(_arguments: Any = None, *, model_runner: Any, **_: Any) -> None:
    """Before `capture_cuda_graphs`: SGLang captures the batch sizes that were chosen for `--ascend-moe`."""
    from sglang.srt.runtime_context import get_exec

    buckets = getattr(model_runner.attn_backend, "buckets", None)
    if buckets is not None and buckets.batches:
        decode = get_exec().graph.cuda_graph_config.decode
        decode.bs, decode.max_bs = list(buckets.batches), buckets.batches[-1]


def capture_decode(_original: Callable[..., Any], *, model_runner: Any) -> Any:
    """Around `capture_decode_graph`, which captures nothing on a CPU: captures, or says why not and serves eagerly.

    Raises `CaptureRefused` with `--ascend-moe-require-graphs`.
    """
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
    from sglang.srt.model_executor.model_runner_components.cuda_graph_setup import GraphCapture

    options = options_of(model_runner.server_args)
    if options is None or model_runner.is_draft_worker:
        return nothing_captured()
    if check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED):
        return switched_off(options)
    from sglang_ascend_moe.graph_capture.runners.host_runner import HostGraphRunner

    begin = time.perf_counter()
    try:
        buckets = getattr(model_runner.attn_backend, "buckets", None)
        if buckets is None:
            raise CaptureRefused(
                f"the attention backend {type(model_runner.attn_backend).__name__} has no graphs on the host; leave out"
                " --attention-backend, --prefill-attention-backend and --decode-attention-backend"
            )
        if not buckets.batches:
            raise CaptureRefused(
                "a batch of the greatest length gathers too many bytes of keys and values; lower --context-length"
            )
        logger.info(
            "Decode graphs: batches of %s, lengths of %s, %d graphs, which gather at most %d bytes of keys and values",
            list(buckets.batches),
            list(buckets.lengths),
            buckets.graphs,
            buckets.bytes,
        )
        runner = HostGraphRunner(model_runner)
    except CaptureRefused as refused:
        return refused_steps(options, refused)
    return GraphCapture(
        runner=runner,
        memory_phase="decode",
        memory_usage_gb=runner.backend.bytes / 2**30,
        capture_time=time.perf_counter() - begin,
    )


def capture_drafts(_original: Callable[[Any], None], worker: Any) -> None:
    """Around `EagleDraftWorker._capture_cuda_graphs`, which captures nothing on a CPU: captures, or says why not.

    Raises `CaptureRefused` with `--ascend-moe-require-graphs`.
    """
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend

    worker.cuda_graph_runner = worker.cuda_graph_runner_for_draft_extend = None
    options = options_of(worker.server_args)
    if options is None or check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED):
        return
    buckets = getattr(worker.draft_runner.attn_backend, "buckets", None)
    if buckets is None or not buckets.batches:
        # Of the model's own steps, too, and it is said of them.
        return
    from sglang_ascend_moe.graph_capture.runners.host_drafts import HostDraftExtendRunner, HostDraftRunner

    try:
        drafts = HostDraftRunner(worker) if worker.speculative_num_steps > 1 else None
        extend = HostDraftExtendRunner(worker, draft_extend_attn_backend=worker.draft_runner.attn_backend)
    except CaptureRefused as refused:
        refused_drafts(options, refused)
        return
    worker.cuda_graph_runner, worker.cuda_graph_runner_for_draft_extend = drafts, extend


def replays_when_idle(mode: Any) -> bool:
    """In place of `ForwardMode.is_cpu_graph`: a rank without requests replays with the others, as on other devices."""
    return bool(mode.is_cuda_graph())


def all_reduce(original: Callable[..., Any], coordinator: Any, input_: torch.Tensor) -> torch.Tensor:
    """Around `GroupCoordinator.all_reduce`: a collective of a captured step is a launch.

    It is the one that the original makes of tensors of the host. Where it fails, `blame.collective_of` finds its name,
    group and work in the frame.
    """
    if not launches.capturing() or coordinator.world_size == 1:
        return original(coordinator, input_)
    group = coordinator.device_group

    def bind(reduced: torch.Tensor) -> launches.Launch:
        def all_reduce() -> None:
            work = group.allreduce([reduced])
            work.wait()

        return all_reduce

    launches.launch(bind, [], [input_])
    return input_


def all_gather(
    original: Callable[..., Any],
    coordinator: Any,
    input_: torch.Tensor,
    dim: int = -1,
    output_tensor_list: list[torch.Tensor] | None = None,
) -> Any:
    """Around `GroupCoordinator.all_gather`: a collective of a captured step is a launch, as in `all_reduce`."""
    if not launches.capturing() or coordinator.world_size == 1 or output_tensor_list is not None:
        return original(coordinator, input_, dim, output_tensor_list)
    ranks, group = coordinator.world_size, coordinator.device_group
    shape = list(input_.shape)
    shape[dim] *= ranks
    gathered = input_.new_empty(shape)

    def bind(part: torch.Tensor, whole: torch.Tensor) -> launches.Launch:
        parts = part.new_empty(ranks, *part.shape)
        into = whole.unflatten(dim, (ranks, part.shape[dim])).movedim(dim % part.dim(), 0)
        along_rows = parts.flatten(0, 1)

        def all_gather() -> None:
            work = group._allgather_base(along_rows, part.contiguous())
            work.wait()
            into.copy_(parts)

        return all_gather

    launches.launch(bind, [input_], [gathered])
    return gathered
