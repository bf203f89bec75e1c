"""A stand-in for `torch.npu`: the part that SGLang's NPU graph backend uses, on the CPU, with the rules of a capture.

It is no NPU and knows nothing of one: streams do nothing, and an operator is captured by running and remembering it.
What it does is to break where a real capture would: one capture at a time, no wait for the device, no value handed to
Python, no host collective, no new window, no tensor whose memory is gone at replay. Names, parameters and defaults are
those of torch_npu; `test_torch_npu_contract` compares them with the real sources.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sglang_ascend_moe import launches
from sglang_ascend_moe.windows import allocations

HANDLED = {"attend"}
"""Operators whose host-side arguments `NPUGraph.update` binds anew, as torch_npu does for its attention operators."""


WITHOUT_WORK = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")
"""Operators that put nothing on a stream."""
UPDATE_DEADLINE_S = 60.0


class CaptureBroken(RuntimeError):
    """What a real capture would fail with."""


_capturing: NPUGraph | None = None


class Stream:
    """Work is done at once, in the order of the calls."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        pass

    def wait_stream(self, stream: Stream) -> None:
        pass


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        _forbid_in_capture("Event.synchronize")


def synchronize(device: Any = None) -> None:  # noqa: ARG001 - the parameter in torch_npu
    _forbid_in_capture("torch.npu.synchronize")


def current_device() -> int:
    return 0


def set_device(device: Any) -> None:
    if int(device) != 0:
        raise RuntimeError(f"there is no device {device}")


def is_available() -> bool:
    """False: nothing but the graph backend is to take this for an NPU."""
    return False


def is_current_stream_capturing() -> bool:
    return _capturing is not None


_pools = iter(range(1, 1000))


def graph_pool_handle() -> tuple[int, int]:
    return (0, next(_pools))


def _forbid_in_capture(what: str) -> None:
    if _capturing is not None:
        raise CaptureBroken(f"{what} while a stream is captured")


class _Borrowed:
    """A tensor from outside the graph, of which a graph knows the address and nothing else."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._address = tensor.data_ptr()
        self._view = (tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype)

    def tensor(self) -> torch.Tensor:
        if self._storage.expired():
            raise CaptureBroken(f"a replay reads address {self._address:#x}, whose tensor is gone")
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        size, stride, offset, dtype = self._view
        return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


class _Node:
    """One captured operator; `results` are the tensors of the graph's pool that it writes.

    A replay waits at an operator that is updated until its update has come, as the captured event of torch_npu does.
    """

    def __init__(self, operator: Any, arguments: Any, keywords: dict[str, Any], results: list[torch.Tensor]) -> None:
        self.operator = operator
        self.arguments = arguments
        self.keywords = keywords
        self.updated = threading.Event() if operator._opname in HANDLED else None
        self._results = results

    def __call__(self) -> None:
        if self.updated is not None:
            if not self.updated.wait(UPDATE_DEADLINE_S):
                raise CaptureBroken(f"{self.operator} waits for an NPUGraph.update that nobody makes")
            self.updated.clear()
        arguments, keywords = tree_map_only(_Borrowed, _Borrowed.tensor, (self.arguments, self.keywords))
        made = _tensors(self.operator(*arguments, **keywords))
        for kept, new in zip(self._results, made, strict=True):
            if kept.data_ptr() != new.data_ptr():
                kept.copy_(new)


class NPUGraph:
    """What was captured, ready to run again at the same addresses."""

    def __init__(self) -> None:
        self.auto_dispatch_capture = False
        self._nodes: list[Callable[[], None]] = []
        self._made: dict[int, StorageWeakRef] = {}
        self._pool_tensors: list[torch.Tensor] = []
        self._contexts = ExitStack()
        self._ended = False
        self._pool: Any = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        global _capturing
        if _capturing is not None:
            raise CaptureBroken("one capture at a time")
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise ValueError(capture_error_mode)
        self._pool = pool
        _capturing = self
        self._contexts.enter_context(launches.capture(self))
        self._contexts.enter_context(allocations.watch(lambda size: _forbid_in_capture(f"a window of {size} bytes")))
        self._contexts.enter_context(_Capture(self))
        self._contexts.enter_context(_Reads())

    def capture_end(self) -> None:
        global _capturing
        self._contexts.close()
        _capturing = None
        self._ended = True

    def replay(self) -> None:
        _forbid_in_capture("NPUGraph.replay")
        if not self._ended:
            raise CaptureBroken("replay before capture_end")
        for node in self._nodes:
            node()

    def update(self, cpu_update_input: list[dict[str, Any]]) -> None:
        if not self.auto_dispatch_capture:
            raise RuntimeError("Try to capture by setting auto_dispatch_capture=True during capture")
        handled = [node for node in self._nodes if isinstance(node, _Node) and node.updated is not None]
        if len(cpu_update_input) == 1:
            cpu_update_input = [cpu_update_input[0].copy() for _ in handled]
        if len(cpu_update_input) != len(handled):
            raise RuntimeError(f"{len(handled)} operators need to be updated, {len(cpu_update_input)} updates came")
        for node, update in zip(handled, cpu_update_input, strict=True):
            # As torch_npu does it: a key that the operator was not captured with is passed over without a word.
            node.keywords.update({key: value for key, value in update.items() if key in node.keywords})
            node.updated.set()

    def reset(self) -> None:
        self._nodes.clear()
        self._pool_tensors.clear()

    def pool(self) -> Any:
        return self._pool

    def record_launch(self, bind: Any, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None:
        """A launch of the package stands for a kernel on the captured stream."""
        self._nodes.append(bind(*reads, *writes))
        self._pool_tensors += [*reads, *writes]

    def record(self, operator: Any, arguments: Any, keywords: dict[str, Any], result: Any) -> None:
        results = _tensors(result)
        taken = {_identity(item) for item in _tensors((arguments, keywords))}
        kept_arguments, kept_keywords = tree_map_only(torch.Tensor, self._kept, (arguments, keywords))
        for item in results:
            if _identity(item) not in taken:
                self.keep(item)
        if operator._schema.name not in WITHOUT_WORK:
            self._nodes.append(_Node(operator, kept_arguments, dict(kept_keywords), results))

    def keep(self, tensor: torch.Tensor) -> None:
        """Let a tensor be one of the graph's own, which it holds as long as it exists."""
        self._made[_identity(tensor)] = StorageWeakRef(tensor.untyped_storage())
        self._pool_tensors.append(tensor)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor | _Borrowed:
        return tensor if _identity(tensor) in self._made else _Borrowed(tensor)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [item for item in tree_leaves(tree) if isinstance(item, torch.Tensor)]


def _identity(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Reads(TorchFunctionMode):
    """Values that Python reads without an operator that a dispatch mode would see."""

    _NAMES: ClassVar = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.item}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._NAMES:
            _forbid_in_capture(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class _Capture(TorchDispatchMode):
    def __init__(self, graph: NPUGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if (waits and func._opname != "index") or func.namespace == "c10d":
            _forbid_in_capture(str(func))
        result = func(*args, **kwargs)
        if func._schema.name == "aten::lift_fresh":
            # Made from Python values. The step may write into it, and a replay begins with the values.
            self._graph.keep(result)
            func, args, kwargs = torch.ops.aten.clone.default, (result,), {}
            result = result.clone()
        self._graph.record(func, args, kwargs, result)
        return result


class graph:  # noqa: N801 - the name in torch_npu
    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: Any = None,
        stream: Stream | None = None,  # noqa: ARG002
        auto_dispatch_capture: bool = False,
        capture_error_mode: str = "global",
    ) -> None:
        self.pool = () if pool is None else (pool,)
        self.npu_graph = npu_graph
        self.capture_error_mode = capture_error_mode
        self.npu_graph.auto_dispatch_capture = auto_dispatch_capture

    def __enter__(self) -> None:
        synchronize()
        self.npu_graph.capture_begin(*self.pool, capture_error_mode=self.capture_error_mode)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.npu_graph.capture_end()


SURFACE = (
    "Event", "NPUGraph", "Stream", "current_device", "graph", "graph_pool_handle", "is_available",
    "is_current_stream_capturing", "set_device", "synchronize",
)  # fmt: skip


def module() -> types.ModuleType:
    """The stand-in as a module, in the place of `torch.npu`."""
    made = types.ModuleType("torch.npu")
    for name in SURFACE:
        setattr(made, name, globals()[name])
    return made


def install(patch: pytest.MonkeyPatch | None = None) -> types.ModuleType:
    """`torch.npu` becomes the stand-in, and `import torch_npu` succeeds; for good, or until `patch` is undone."""
    patch = patch or pytest.MonkeyPatch()
    stand_in = module()
    patch.setattr(torch, "npu", stand_in, raising=False)
    patch.setitem(sys.modules, "torch.npu", stand_in)
    patch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
    return stand_in


@contextmanager
def in_place_of_torch_npu() -> Iterator[types.ModuleType]:
    """The stand-in is installed inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        yield install(patch)
