"""`torch.npu.NPUGraph`, under the names and rules of torch_npu.

What `update` exchanges are the arguments of operators in `UPDATED`. A capture that is made for updates waits, at each
of their calls, for an event that the update sets, so that every replay needs one update.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.npu.device import streams
from tests.npu.device.library import native

_FIRST = {"actual_seq_lengths": 5, "actual_seq_lengths_kv": 6}
_SECOND = {"actual_seq_qlen": 7, "actual_seq_kvlen": 8}
UPDATED: dict[str, dict[str, int]] = {
    "npu_fused_infer_attention_score.default": _FIRST,
    "npu_fused_infer_attention_score.out": _FIRST,
    "npu_fused_infer_attention_score_v2.default": _SECOND,
    "npu_fused_infer_attention_score_v2.out": _SECOND,
}
"""Operators that `update` binds anew -> the places of the arguments that may be given by position."""


def is_current_stream_capturing() -> bool:
    return native().is_capturing()


def graph_pool_handle() -> tuple[int, int]:
    return (0, native().new_pool())


class _Call(NamedTuple):
    """A call of the capture that an update makes anew."""

    operator: Any
    arguments: list[Any]
    keywords: dict[str, Any]
    group: int
    event: streams.ExternalEvent

    def take(self, update: dict[str, Any]) -> None:
        """A key that the call has no argument for is passed over without a word, as torch_npu does."""
        for key, value in update.items():
            if key in self.keywords:
                self.keywords[key] = value
        for key, place in UPDATED[self.operator.__name__].items():
            if key in update and len(self.arguments) > place:
                self.arguments[place] = update[key]


def _without_ownership(tree: Any) -> Any:
    def reference(tensor: torch.Tensor) -> torch.Tensor:
        return torch.ops.emulated_npu.weak_reference(tensor) if tensor.device.type == "npu" else tensor

    return tree_map_only(torch.Tensor, reference, tree)


class _CaptureForUpdates(TorchDispatchMode):
    def __init__(self, graph: Any, calls: list[_Call]) -> None:
        super().__init__()
        self._graph = graph
        self._calls = calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler to keep it away from this class."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ not in UPDATED:
            return func(*args, **kwargs)
        event, stream = streams.ExternalEvent(), streams.current_stream()
        event.wait(stream)
        event.reset(stream)
        self._graph.group_begin()
        result = func(*args, **kwargs)
        group = self._graph.group_end()
        arguments, keywords = _without_ownership((list(args), dict(kwargs)))
        self._calls.append(_Call(func, arguments, keywords, group, event))
        return result


class NPUGraph:
    """What was put on a stream during a capture, ready to run again at the same addresses."""

    def __init__(self) -> None:
        self.auto_dispatch_capture = False
        self._graph = native().Graph()
        self._calls: list[_Call] = []
        self.graph_dispatch_mode = _CaptureForUpdates(self._graph, self._calls)
        self._update_stream: streams.Stream | None = None

    def capture_begin(self, pool: tuple[int, int] | None = None, capture_error_mode: str = "global") -> None:
        self._graph.capture_begin(0 if pool is None else pool[1], capture_error_mode)

    def capture_end(self) -> None:
        self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self._calls.clear()
        self._graph.reset()

    def pool(self) -> tuple[int, int]:
        return (0, self._graph.pool())

    def update(self, cpu_update_input: list[dict[str, Any]]) -> None:
        """Binds arguments of the captured calls anew, for the replay that waits for it, or the next one."""
        if not self.auto_dispatch_capture:
            raise RuntimeError(
                "The current graph configuration does not support update,"
                "Try to capture by setting auto_dispatch_capture=True during capture"
            )
        if len(cpu_update_input) == 1:
            cpu_update_input = [copy(cpu_update_input[0]) for _ in self._calls]
        if len(cpu_update_input) != len(self._calls):
            raise RuntimeError(f"{len(self._calls)} operators need to be updated, {len(cpu_update_input)} updates came")
        if self._update_stream is None:
            self._update_stream = streams.Stream()
        with streams.stream(self._update_stream):
            for call, update in zip(self._calls, cpu_update_input, strict=True):
                call.take(update)
                self._graph.update_begin(call.group)
                call.operator(*call.arguments, **call.keywords)
                self._graph.update_end()
                call.event.record(self._update_stream)


class graph:  # noqa: N801 - the name in torch_npu
    """Inside, what is put on `stream` is captured."""

    default_capture_stream: streams.Stream | None = None

    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: Any = None,
        stream: streams.Stream | None = None,
        auto_dispatch_capture: bool = False,
        capture_error_mode: str = "global",
    ) -> None:
        if stream is None and graph.default_capture_stream is None:
            graph.default_capture_stream = streams.Stream()
        self.pool = () if pool is None else (pool,)
        self.capture_stream = stream if stream is not None else graph.default_capture_stream
        self.npu_graph = npu_graph
        self.stream_context = streams.stream(self.capture_stream)
        self.capture_error_mode = capture_error_mode
        self.npu_graph.auto_dispatch_capture = auto_dispatch_capture

    def __enter__(self) -> None:
        torch.npu.synchronize()
        self.stream_context.__enter__()
        self.npu_graph.capture_begin(*self.pool, capture_error_mode=self.capture_error_mode)
        if self.npu_graph.auto_dispatch_capture:
            self.npu_graph.graph_dispatch_mode.__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if self.npu_graph.auto_dispatch_capture:
            self.npu_graph.graph_dispatch_mode.__exit__(exc_type, exc_value, traceback)
        try:
            self.npu_graph.capture_end()
        except RuntimeError:
            # What went wrong within says more.
            if exc_type is None:
                raise
        finally:
            self.stream_context.__exit__(exc_type, exc_value, traceback)
