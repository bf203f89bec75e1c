"""What a server does whose decode steps cannot be captured."""

from __future__ import annotations

import logging
from typing import Any

from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.exchange.observation import graphs
from sglang_ascend_moe.serving.options import FLAGS, Options

logger = logging.getLogger(__name__)


def nothing_captured() -> Any:
    """What SGLang is told of a decode phase without graphs."""
    from sglang.srt.model_executor.model_runner_components.cuda_graph_setup import GraphCapture

    return GraphCapture(runner=None, memory_phase="decode", memory_usage_gb=0, capture_time=0)


def switched_off(options: Options) -> Any:
    """`nothing_captured`; raises `CaptureRefused` with `--ascend-moe-require-graphs`."""
    if options.require_graphs:
        raise CaptureRefused(f"{FLAGS['require_graphs'].flag}: decode graphs are switched off by SGLang's own flags")
    return nothing_captured()


def refused_steps(options: Options, refused: CaptureRefused) -> Any:
    """As `switched_off`, with one warning that says why decode is eager."""
    from sglang.srt.runtime_context import get_parallel

    _refuse_if_required(options, refused)
    graphs.forget()
    if get_parallel().tp_rank == 0:
        logger.warning("Decode runs without graphs, slower and with the same results: %s", refused)
    return nothing_captured()


def refused_drafts(options: Options, refused: CaptureRefused) -> None:
    """The same for a draft model, whose drafts the model may still verify in graphs."""
    from sglang.srt.runtime_context import get_parallel

    _refuse_if_required(options, refused)
    if get_parallel().tp_rank == 0:
        logger.warning("Drafts are made without graphs, slower and with the same results: %s", refused)


def _refuse_if_required(options: Options, refused: CaptureRefused) -> None:
    if options.require_graphs:
        raise CaptureRefused(f"{FLAGS['require_graphs'].flag}: {refused}") from refused
