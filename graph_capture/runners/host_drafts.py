"""Draft graphs on the host: SGLang's runners for a draft, and for what a draft model reads afterwards, over tapes."""

from __future__ import annotations

from typing import Any

from sglang.srt.model_executor.runner.shape_key import ShapeKey
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant
from sglang.srt.speculative.eagle_draft_cuda_graph_runner import EAGLEDraftCudaGraphRunner
from sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner import EAGLEDraftExtendCudaGraphRunner

from sglang_ascend_moe.graph_capture.runners.host_runner import HostCapture
from sglang_ascend_moe.serving.worker import lockstep


class _OneOfLengths(HostCapture):
    """A runner of SGLang's that knows one graph for a batch size, made to choose among those of several lengths."""

    _chosen: str | None = None

    @property
    def forward_passes(self) -> int:
        """Of the draft model, in one replay."""
        return 1

    def _make_graph_key(self, bs: int, *_: Any, **__: Any) -> ShapeKey:
        return ShapeKey(size=bs, attention_variant=self._chosen or get_capture_attention_variant())

    def execute(self, forward_batch: Any, *arguments: Any) -> Any:
        """One replay, whose forward passes all ranks compare."""
        for _ in range(self.forward_passes):
            lockstep.begin_forward_pass(self.model_runner, forward_batch)
        self._chosen = self.attention_graph_variants.select(forward_batch)
        try:
            return super().execute(forward_batch, *arguments)
        finally:
            self._chosen = None


class HostDraftRunner(_OneOfLengths, EAGLEDraftCudaGraphRunner):
    """All steps of a draft in one graph."""

    holds = "Draft"

    @property
    def forward_passes(self) -> int:
        return self.tokens_ahead - 1

    @property
    def tokens_ahead(self) -> int:
        return int(self.speculative_num_steps)


class HostDraftExtendRunner(_OneOfLengths, EAGLEDraftExtendCudaGraphRunner):
    """The draft model reads what was verified."""

    holds = "Draft extend"
