"""What a recorded step is made of, and which of it need not run twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe import launches
from sglang_ascend_moe.graph_capture.operators import only_allocates
from sglang_ascend_moe.graph_capture.trees import leaves, mapped


class Reference(NamedTuple):
    """A tensor that the step made: number of its memory, and how it lies in it (elements of `dtype`)."""

    memory: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


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


Call = OperatorCall | LaunchCall


def inputs(call: Call) -> Any:
    """What a call takes, as a tree of references, tensors and Python values."""
    return call.tensors if isinstance(call, LaunchCall) else (call.arguments, call.keywords)


def references(tree: Any) -> Iterator[Reference]:
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Reference))


def without_repeats(calls: Sequence[Call], kept: set[int]) -> list[Call]:
    """`calls` without those that would compute again what an earlier one has computed; others use its results.

    Only what nobody changes afterwards, and was not made of what somebody changes, is used twice. kept: memory that
    the step returns.
    """
    changed = kept | {memory for call in calls for memory in _may_change(call)}
    first: dict[Any, OperatorCall] = {}
    instead: dict[int, int] = {}
    needed: list[Call] = []
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


def _may_change(call: Call) -> Iterator[int]:
    """Memory that a call writes into and did not make; of a launch all that it works on."""
    if isinstance(call, OperatorCall):
        parameters = call.operator._schema.arguments
        given = dict(zip((item.name for item in parameters), call.arguments, strict=False)) | dict(call.keywords)
        written: Any = [given.get(item.name) for item in parameters if item.is_write]
    else:
        written = call.tensors
    for item in leaves(written):
        if isinstance(item, Reference):
            yield item.memory
        elif isinstance(item, Tensor):
            yield _outside(item)


def _outside(tensor: Tensor) -> int:
    """The memory of a tensor that the step did not make, by address; negative, as no number of a memory is."""
    return -1 - int(tensor.untyped_storage().data_ptr())


def _repeatable(call: OperatorCall, changed: set[int]) -> bool:
    if call.operator._schema.is_mutable or only_allocates(call.operator):
        return False
    if torch.Tag.nondeterministic_seeded in call.operator.tags:
        return False
    for item in leaves((inputs(call), call.results)):
        memory = item.memory if isinstance(item, Reference) else _outside(item) if isinstance(item, Tensor) else None
        if memory in changed:
            return False
    return True


def _comparable(tree: Any) -> tuple[Any, ...]:
    match tree:
        case Reference():
            return Reference, tree
        case Tensor():
            return "outside", tree.data_ptr(), tree.dtype, tuple(tree.shape), tree.stride()
        case tuple() | list():
            return type(tree), *map(_comparable, tree)
        case dict():
            return dict, *((name, _comparable(item)) for name, item in tree.items())
    return type(tree), repr(tree)


def _with_memory(call: Call, instead: Mapping[int, int]) -> Call:
    """The call with other memory in place of that which nobody fills any more."""
    if not instead:
        return call

    def renumbered(item: Reference) -> Reference:
        return item._replace(memory=instead.get(item.memory, item.memory))

    return type(call)(*(mapped(field, Reference, renumbered) for field in call))
