"""Decode graphs in SGLang on Ascend: what is added to the in-tree NPU graph runner and its graph backend.

SGLang's own `NPUGraphRunner` and `NPUCudaGraphBackend` capture and replay. Functions whose description begins with
Before or Around are hooks: see `runner_hooks`. No NPU has run any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.exchange.expert_exchange import ExpertExchange
from sglang_ascend_moe.exchange.observation import graphs
from sglang_ascend_moe.graph_capture.agreement import check_together, require_same
from sglang_ascend_moe.graph_capture.runners.eager import refused_drafts, refused_steps, switched_off
from sglang_ascend_moe.serving.host.graph_buckets import aligned, within
from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.worker import layer, lockstep
from sglang_ascend_moe.serving.worker.gathered_batches import batch_multiple


def capture_decode(original: Callable[..., Any], *, model_runner: Any) -> Any:
    """Around `capture_decode_graph`: a step that cannot be captured is served eagerly, and said so.

    Raises `CaptureRefused` with `--ascend-moe-require-graphs`.
    """
    options = options_of(model_runner.server_args)
    if options is None:
        return original(model_runner=model_runner)
    try:
        captured = original(model_runner=model_runner)
    except CaptureRefused as refused:
        return refused_steps(options, refused)
    return switched_off(options) if captured.runner is None else captured


def capture_drafts(original: Callable[..., None], worker: Any) -> None:
    """Around `EagleDraftWorker._capture_cuda_graphs`: drafts that cannot be captured run eagerly, and it is said so.

    Raises `CaptureRefused` with `--ascend-moe-require-graphs`.
    """
    options = options_of(worker.server_args)
    try:
        original(worker)
    except CaptureRefused as refused:
        if options is None:
            raise
        refused_drafts(options, refused)


def prepare_capture(runner: Any) -> None:
    """Before `DecodeCudaGraphRunner._capture`, or `capture` up to 0.5.22: all ranks have the same buckets, and every
    window has been used.

    None is larger than any batch of a pipeline stage. Raises `CaptureRefused` on every rank if the batch sizes differ.
    """
    exchanges = layer.exchanges()
    if not exchanges:
        return
    from sglang.srt.runtime_context import get_parallel

    if get_parallel().pp_size > 1:
        most = layer.decode_batch(runner.model_runner.max_running_requests)
        runner.capture_bs = within(runner.capture_bs, aligned(most, batch_multiple()))
        runner.max_bs = runner.capture_bs[-1]
    intent = f"batches of {', '.join(map(str, runner.capture_bs))}"
    require_same(get_parallel().tp_group.cpu_group, intent, layer.shared_secret())
    for exchange in exchanges:
        warm(exchange, torch.device(runner.device))


def capture_bucket(
    original: Callable[..., None],
    backend: Any,
    shape_key: Any,
    forward_fn: Callable[[], Any],
    capture_inputs: Any = None,
    post_warmup_hook: Callable[[], None] | None = None,
) -> None:
    """Around `NPUCudaGraphBackend.capture_one`: the guard on all ranks, then SGLang's warm-ups and capture.

    Within them the MoE layer takes the form that a graph can hold. Raises `CaptureRefused` on every rank for a step
    that cannot be captured, and for windows that no exchange has used yet.
    """
    exchanges = layer.exchanges()
    if not exchanges:
        return original(backend, shape_key, forward_fn, capture_inputs, post_warmup_hook)
    for exchange in exchanges:
        if not exchange.epoch:
            raise CaptureRefused(
                "a window has not been used before the first capture, which would then be the first to map it; report"
                " this with the server's arguments"
            )
    check_together(
        forward_fn,
        backend._tp_group.cpu_group,
        subject=f"the decode graph of {_shown(shape_key)}",
        between=post_warmup_hook,
        # A device graph holds what a launch puts on the stream, and nothing of what it does on the host.
        into_launches=True,
        secret=layer.shared_secret(),
    )
    with launches.capture():
        original(backend, shape_key, forward_fn, capture_inputs, post_warmup_hook)
    graphs.captured("npu graph", shape_key.size)
    return None


def replay(original: Callable[..., Any], runner: Any, forward_batch: Any, pp_proxy_tensors: Any = None) -> Any:
    """Around `NPUGraphRunner.execute`, which is one replay."""
    return _replayed(original, runner, forward_batch, pp_proxy_tensors)


def replay_drafts(original: Callable[..., Any], runner: Any, forward_batch: Any) -> Any:
    """Around `EAGLEDraftCudaGraphRunner.execute`: one replay is all forward passes of a draft."""
    for _ in range(runner.speculative_num_steps - 1):
        lockstep.begin_forward_pass(runner.model_runner, forward_batch)
    return _replayed(original, runner, forward_batch)


def replay_draft_extend(original: Callable[..., Any], runner: Any, forward_batch: Any, *arguments: Any) -> Any:
    """Around `EAGLEDraftExtendCudaGraphRunner.execute`: the draft model reads what was verified in one replay."""
    lockstep.begin_forward_pass(runner.model_runner, forward_batch)
    return _replayed(original, runner, forward_batch, *arguments)


def _replayed(execute: Callable[..., Any], *arguments: Any) -> Any:
    graphs.replays += 1
    for exchange in layer.exchanges():
        exchange.note_replay()
    return execute(*arguments)


def warm(exchange: ExpertExchange, device: torch.device) -> None:
    """One decode exchange, by all ranks: each writes a row into every window and reads it back, as far as it may.

    What comes back is dropped, and so the experts need not compute.
    """
    parameters = exchange.parameters
    tokens = min(parameters.ranks, parameters.max_tokens)
    dtype = getattr(torch, parameters.dtype)
    ids = torch.full((tokens, parameters.topk), -1, device=device)
    ids[:, 0] = torch.arange(tokens, device=device) * parameters.local_experts
    exchange.run(
        torch.zeros(tokens, parameters.hidden, dtype=dtype, device=device),
        ids,
        torch.zeros(tokens, parameters.topk, device=device),
        lambda _rows: None,
    )


def _shown(shape_key: Any) -> str:
    """The batch size and, where SGLang has several graphs for it, which of them."""
    variants = [str(part) for name, part in vars(shape_key).items() if "variant" in name and part is not None]
    return " ".join([f"{shape_key.size} requests", *variants])
