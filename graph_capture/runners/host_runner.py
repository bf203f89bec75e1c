"""Decode graphs on the host: SGLang's graph runner and graph backend over tapes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_backend.base_cuda_graph_backend import BaseCudaGraphBackend
from sglang.srt.runtime_context import get_exec, get_parallel

from sglang_ascend_moe.exchange.observation import graphs
from sglang_ascend_moe.graph_capture.agreement import check_together, refusal_together
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.runners.attention import KeyLengths
from sglang_ascend_moe.graph_capture.step_outputs import recorded, replayed
from sglang_ascend_moe.graph_capture.tape import Tape, record
from sglang_ascend_moe.serving.worker import layer

logger = logging.getLogger(__name__)


class HostCapture(DecodeCudaGraphRunner):
    """What graph runners of SGLang do on a machine without streams and events."""

    holds = "Decode"
    """What its graphs hold, for messages."""

    @property
    def tokens_ahead(self) -> int:
        """Of a request, that a step writes behind those that SGLang counts."""
        return 0

    @property
    def attention_graph_variants(self) -> KeyLengths:
        return KeyLengths(self.attn_backend.buckets, self.tokens_ahead)

    @attention_graph_variants.setter
    def attention_graph_variants(self, _found: Any) -> None:
        """SGLang looks for variants of its own attention backends."""

    def capture(self) -> None:
        """As the original, without its stream and its profiler."""
        with getattr(self, "model_context", nullcontext)():
            self._capture()

    def _capture(self) -> None:
        self.buffers.seq_lens.fill_(self.seq_len_fill_value)
        self.buffers.seq_lens_cpu.fill_(self.seq_len_fill_value)
        self.buffers.reset_index_buffers()
        with freeze_gc(get_exec().graph.enable_cudagraph_gc), self.backend.capture_session(None):
            self._capture_one_stream()


class HostGraphRunner(HostCapture):
    """SGLang's decode graph runner: of steps that decode, or of steps that verify trees."""

    @property
    def tokens_ahead(self) -> int:
        return int(self.captured_req_width) if self.capture_forward_mode.is_target_verify() else 0

    def get_spec_info(self, num_tokens: int) -> Any:
        """As the original; trees are seen where SGLang writes them."""
        verified = super().get_spec_info(num_tokens)
        if self.attn_backend.verify_mask is not None:
            verified.custom_mask = self.attn_backend.verify_mask.buffer
        return verified

    def _forks_draft_metadata_prep(self) -> bool:
        """There is no stream to fork to, and to find that out SGLang imports the kernels of DeepSeek-V4."""
        return False

    def _record_in_graph_metadata_prep_done(self) -> None:
        """There is no stream whose progress somebody could wait for."""

    def _resolve_shared_read_ends(self, *_: Any) -> SharedReadEnds:
        return SharedReadEnds.UNKNOWN


class Captured(NamedTuple):
    """A graph. `template` is what the recorded step returned, `seconds` what guard and recording took together."""

    tape: Tape
    template: Any
    seconds: float


class HostGraphBackend(BaseCudaGraphBackend):
    """SGLang's graph backend with a tape for each shape."""

    def __init__(self, runner: HostCapture, *_: Any, **__: Any) -> None:
        self._holds = runner.holds
        self._arena = Arena()
        self._graphs: dict[Any, Captured] = {}
        self._group = get_parallel().tp_group.cpu_group

    @contextmanager
    def capture_session(self, _stream: Any) -> Iterator[None]:
        yield
        logger.info(
            "%s graphs: %d captured, the slowest in %.2f s; their tensors take %d bytes",
            self._holds,
            len(self._graphs),
            max((item.seconds for item in self._graphs.values()), default=0.0),
            self._arena.bytes,
        )

    def capture_one(
        self,
        shape_key: Any,
        forward_fn: Callable[[], Any],
        capture_inputs: Any = None,  # noqa: ARG002 - SGLang passes it by name
        post_warmup_hook: Callable[[], None] | None = None,
    ) -> None:
        begin = time.perf_counter()
        subject = f"a decode batch of {shape_key.size} with {shape_key.attention_variant}"
        check_together(forward_fn, self._group, subject=subject, secret=layer.shared_secret())
        if post_warmup_hook is not None:
            post_warmup_hook()

        outputs: list[Any] = []

        def step() -> dict[str, Any]:
            outputs.append(forward_fn())
            return recorded(outputs[-1])

        with refusal_together(self._group, subject=subject, secret=layer.shared_secret()):
            tape = record(step, self._arena)
        self._graphs[shape_key] = Captured(tape, outputs[-1], time.perf_counter() - begin)
        graphs.captured("tape", shape_key.size)

    def can_run(self, _forward_batch: Any, shape_key: Any) -> bool:
        return shape_key in self._graphs

    @contextmanager
    def replay_session(self) -> Iterator[None]:
        yield

    def replay(self, shape_key: Any, *_: Any, **__: Any) -> Any:
        graphs.replays += 1
        captured = self._graphs[shape_key]
        return replayed(captured.template, captured.tape.replay())

    def captures_of(self, size: int) -> list[Captured]:
        """The graphs of one batch size, one for each length."""
        return [captured for key, captured in self._graphs.items() if key.size == size]

    @property
    def bytes(self) -> int:
        """Memory of the tensors that the tapes share."""
        return self._arena.bytes

    def cleanup(self) -> None:
        self._graphs.clear()
        graphs.forget()
        self._arena = Arena()
