"""The operators of one run of a step, in a form in which two runs can be compared."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.graph_capture import findings
from sglang_ascend_moe.graph_capture.findings import Rule, is_dense, refusal, tensors_in

_LONGEST_VALUE = 80


class WatchedCall(NamedTuple):
    """One call of an operator: where from, and its arguments as (name, what is compared)."""

    operator: str
    file: str
    line: int
    arguments: tuple[tuple[str, Any], ...]


class Made(NamedTuple):
    """A tensor that the step made itself. A graph gives it the same address every time."""

    dtype: str
    shape: tuple[int, ...]


class Fixed(NamedTuple):
    """A tensor from outside the step: a graph keeps its address."""

    dtype: str
    shape: tuple[int, ...]
    address: int


class Constant(NamedTuple):
    """A tensor made from Python values: a graph keeps the values."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


class WatchedCalls:
    """Collects the calls of the runs of one step. Raises `CaptureRefused` at a tensor that cannot be followed."""

    def __init__(self) -> None:
        self.run = 0
        self.calls: list[WatchedCall] = []
        self._calling = ""
        # Kept, so that no address and no identity is used twice while runs are compared.
        self._outside: dict[int, Any] = {}
        self._made: dict[int, StorageWeakRef] = {}

    def begin_run(self) -> None:
        self.run += 1
        self.calls = []
        self._made = {}

    def record(
        self, operator: str, file: str, line: int, arguments: dict[str, Any], *, constant: bool = False
    ) -> WatchedCall:
        """Adds a call; of a `constant` the values of its tensors are what is compared, and not where they lie."""
        self._calling = operator
        describe = _constant if constant else self._described
        call = WatchedCall(operator, file, line, tuple((name, describe(value)) for name, value in arguments.items()))
        self.calls.append(call)
        return call

    def made(self, result: Any) -> None:
        """Notes the tensors that an operator returned, if they are not views of tensors from outside."""
        for tensor in tensors_in(result):
            storage = self._storage(tensor)
            if storage._cdata not in self._outside:
                self._made[storage._cdata] = StorageWeakRef(storage)

    def _described(self, value: Any) -> Any:
        match value:
            case Tensor():
                return self._tensor(value)
            case list() | tuple():
                return tuple(self._described(item) for item in value)
            case dict():
                return tuple((key, self._described(item)) for key, item in value.items())
            case bool() | int() | str() | None:
                return value
            case float() | complex() | torch.dtype() | torch.device() | torch.layout() | torch.memory_format():
                # As text, because NaN differs from itself.
                return repr(value)
        # Groups and generators: they hold no number that would freeze.
        return type(value).__name__

    def _tensor(self, tensor: Tensor) -> Made | Fixed:
        storage = self._storage(tensor)
        shape = (str(tensor.dtype), tuple(tensor.shape))
        if storage._cdata in self._made:
            return Made(*shape)
        self._outside[storage._cdata] = storage
        return Fixed(*shape, tensor.data_ptr())

    def _storage(self, tensor: Tensor) -> torch.UntypedStorage:
        if not is_dense(tensor):
            raise CaptureRefused(refusal(findings.LAYOUT, self._calling))
        return tensor.untyped_storage()


def _constant(tensor: Tensor) -> Constant:
    # Elsewhere than on the host its making is a copy between devices, and refused as such.
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.is_cpu else b""
    return Constant(str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(content).hexdigest())


def difference(before: WatchedCall | None, now: WatchedCall) -> Rule | None:
    """What a graph that was captured as `before` would get wrong about `now`; None if nothing."""
    if before is None:
        return Rule("ran, and did not in the run before", findings.SAME_PATH)
    if (before.operator, before.file, before.line) != (now.operator, now.file, now.line):
        return Rule(f"ran where {before.operator} at {before.file}:{before.line} ran before", findings.SAME_PATH)
    for (name, first), (_, second) in zip(before.arguments, now.arguments, strict=True):
        if first != second:
            return _changed(name, first, second)
    return None


def _changed(name: str, first: Any, second: Any) -> Rule:
    if type(first) is tuple and type(second) is tuple and len(first) == len(second):
        return next(_changed(name, one, other) for one, other in zip(first, second, strict=True) if one != other)
    tensors = (Made, Fixed, Constant)
    if not (isinstance(first, tensors) and isinstance(second, tensors)):
        problem = f"got {name}={_shortened(second)} after {_shortened(first)}, and a graph would keep the first"
        return Rule(problem, findings.VALUE_IN_TENSOR)
    if first[:2] != second[:2]:
        problem = f"got {name} as {second.dtype} {list(second.shape)} after {first.dtype} {list(first.shape)}"
        return Rule(problem, findings.SAME_PATH)
    if isinstance(first, Constant) and isinstance(second, Constant):
        return Rule(
            "made a tensor of other values than before, and a graph would keep the first", findings.VALUE_IN_TENSOR
        )
    problem = f"got {name} at another address than before, and a graph would keep reading the first"
    return Rule(problem, findings.TENSOR_IN_PLACE)


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
