"""What a recorded step is made of, and which of it need not run twice."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from sglang_ascend_moe import launches
from sglang_ascend_moe.graph_capture.operators import by_name, only_allocates
from sglang_ascend_moe.graph_capture.trees import leaves, mapped


class Reference(msgspec.Struct, frozen=True):
    """A tensor that the step made: number of its memory, how it lies in it (elements of `dtype`), and whether it is the
    conjugate or the negative of what lies there."""

    memory: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    conjugate: bool
    negative: bool


_TENSORS = (Reference, Tensor)


class OperatorCall(NamedTuple):
    """An operator with its arguments. `results`: what it made, in the order of what it returns and None where that is
    not new; empty where it only writes into an argument."""

    operator: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    results: tuple[Reference | None, ...]


class LaunchCall(NamedTuple):
    """A launch (see `launches`) and the tensors it works on."""

    bind: launches.Bind
    tensors: tuple[Any, ...]


RecordedCall = OperatorCall | LaunchCall


def inputs(call: RecordedCall) -> Any:
    """What a call takes, as a tree of references, tensors and Python values."""
    return call.tensors if isinstance(call, LaunchCall) else (call.arguments, call.keywords)


def references(tree: Any) -> Iterator[Reference]:
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Reference))


def without_repeats(calls: Sequence[RecordedCall], kept: set[int]) -> list[RecordedCall]:
    """`calls` without those that would compute again what an earlier one has computed; others use its results.

    Only what nobody changes afterwards, and was not made of what somebody changes, is used twice. kept: memory that
    the step returns.
    """
    changed = _Changed(kept, calls)
    first: dict[Any, OperatorCall] = {}
    instead: dict[int, int] = {}
    needed: list[RecordedCall] = []
    for recorded in calls:
        call = _with_memory(recorded, instead)
        if isinstance(call, OperatorCall) and _repeatable(call, changed):
            key = call.operator, *_comparable((call.arguments, call.keywords))
            earlier = first.setdefault(key, call)
            if earlier is not call:
                instead.update(
                    (item.memory, other.memory)
                    for item, other in zip(call.results, earlier.results, strict=True)
                    if item is not None and other is not None
                )
                continue
        needed.append(call)
    return needed


class _Changed:
    """Memory that somebody writes into after it was made: of the step by number, from outside by address."""

    def __init__(self, kept: set[int], calls: Sequence[RecordedCall]) -> None:
        written = [item for call in calls for item in _may_change(call)]
        self._made = kept | {item.memory for item in written if isinstance(item, Reference)}
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in sorted({_bytes_of(item) for item in written if isinstance(item, Tensor)}):
            if self._ends and begin < self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._begins.append(begin)
                self._ends.append(end)

    def __contains__(self, item: Reference | Tensor) -> bool:
        if isinstance(item, Reference):
            return item.memory in self._made
        begin, end = _bytes_of(item)
        # The last range that begins before this one ends; those before it end earlier.
        index = bisect_right(self._begins, end - 1) - 1
        return index >= 0 and begin < self._ends[index]


def _bytes_of(tensor: Tensor) -> tuple[int, int]:
    """Addresses, from the first to behind the last, of all that a tensor shares its memory with: two arrays of numpy
    that look at the same numbers are two memories for torch."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _may_change(call: RecordedCall) -> Iterator[Reference | Tensor]:
    """What a call writes into and did not make; of a launch all that it works on."""
    if isinstance(call, OperatorCall):
        given = by_name(call.operator, call.arguments, call.keywords)
        written: Any = [given[item.name] for item in call.operator._schema.arguments if item.is_write]
    else:
        written = call.tensors
    return (item for item in leaves(written) if isinstance(item, _TENSORS))


def _repeatable(call: OperatorCall, changed: _Changed) -> bool:
    if call.operator._schema.is_mutable or only_allocates(call.operator):
        return False
    if torch.Tag.nondeterministic_seeded in call.operator.tags:
        return False
    used = leaves((inputs(call), call.results))
    return not any(item in changed for item in used if isinstance(item, _TENSORS))


def _comparable(tree: Any) -> tuple[Any, ...]:
    match tree:
        case Reference():
            return Reference, tree
        case Tensor():
            signs = tree.is_conj(), tree.is_neg()
            return "outside", tree.data_ptr(), tree.dtype, tuple(tree.shape), tree.stride(), signs
        case tuple() | list():
            return type(tree), *map(_comparable, tree)
        case dict():
            return dict, *((name, _comparable(item)) for name, item in tree.items())
    return type(tree), repr(tree)


def _with_memory(call: RecordedCall, instead: Mapping[int, int]) -> RecordedCall:
    """The call with other memory in place of that which nobody fills any more."""
    if not instead:
        return call

    def renumbered(item: Reference) -> Reference:
        memory = instead.get(item.memory)
        return item if memory is None else msgspec.structs.replace(item, memory=memory)

    return type(call)(*(mapped(field, Reference, renumbered) for field in call))
