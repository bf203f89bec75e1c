"""A tape: the operators of one step, recorded once and run again at fixed addresses.

It is to the host what a device graph is to an accelerator. A step that is recorded runs as always. Afterwards every
tensor that it made gets a place in an arena, operators are rewritten to their `out` form, and operators that return
views are left out, because what they look at lies at fixed addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.graph_capture import findings
from sglang_ascend_moe.graph_capture.arena import Arena, Lifetime, place
from sglang_ascend_moe.graph_capture.findings import frozen_rule, is_dense, may_freeze, refusal, shown_name
from sglang_ascend_moe.graph_capture.operator_calls import (
    LaunchCall,
    OperatorCall,
    RecordedCall,
    Reference,
    inputs,
    references,
    without_repeats,
)
from sglang_ascend_moe.graph_capture.operators import bound, by_name, only_allocates, only_copies, out_form
from sglang_ascend_moe.graph_capture.trees import leaves, mapped

Replay = Callable[[], Any]
_VALUES = (
    bool, int, float, complex, str, bytes, type(None), Enum,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""What a step may return beside tensors, because it cannot hold one."""
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)


class Recording(TorchDispatchMode):
    """Runs a step and writes down its operators. Raises `CaptureRefused` at one that no replay can stand for."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RecordedCall] = []
        self.bytes: list[int] = []
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self._calling = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it every operator and launch of this thread is recorded."""
        with launches.capture(self), self:
            yield

    def __torch_dispatch__(
        self,
        operator: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        if isinstance(operator, HigherOrderOperator):
            raise CaptureRefused(refusal(findings.HIGHER_ORDER, shown_name(operator)))
        if operator._can_decompose() and not operator._schema.is_mutable:
            with self:
                result = operator.decompose(*args, **keywords)
            if result is not NotImplemented:
                return result
        self._calling = shown_name(operator)
        arguments, named = self.refer(args), self.refer(keywords)
        rule = frozen_rule(operator, by_name(operator, args, keywords)) if may_freeze(operator) else None
        if rule is not None:
            raise CaptureRefused(refusal(rule, self._calling))
        result = operator(*args, **keywords)
        if operator in _LIFTS:
            # Made from Python values. The step may write into it, so a replay makes it again from a copy.
            result = result.clone()
            again = OperatorCall(torch.ops.aten.clone.default, (result.clone(),), {}, (self._born(result, set()),))
            self.calls.append(again)
            return result
        given = _tensors((args, keywords))
        taken = {item.untyped_storage()._cdata for item in given}
        results = tuple(self._born(item, taken) for item in leaves(result))
        made = any(item is not None for item in results)
        writes = operator._schema.is_mutable
        if writes:
            for item in given:
                self._memory(item)
            # An operator that gives a tensor other strides in place (`transpose_`) writes nothing; references to the
            # tensor have the new strides. One from outside has no reference: there it is run again, as in the step.
            writes = torch.Tag.inplace_view not in operator.tags or not isinstance(arguments[0], Reference)
        if made or writes:
            self.calls.append(OperatorCall(operator, arguments, named, results if made else ()))
        return result

    def record_launch(self, bind: launches.Bind, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None:
        self._calling = "a launch"
        self.calls.append(LaunchCall(bind, tuple(self.refer([*reads, *writes]))))

    def refer(self, tree: Any) -> Any:
        """`tree` with every tensor that the step made replaced by a reference to it."""
        return mapped(tree, torch.Tensor, self._reference)

    def returned(self, tree: Any) -> Any:
        """As `refer`, of what the step returned. Raises `CaptureRefused` if that may hold tensors out of sight."""
        self._calling = "the end of the step"
        result = self.refer(tree)
        for leaf in leaves(result):
            if not isinstance(leaf, (Reference, torch.Tensor, *_VALUES)):
                raise CaptureRefused(
                    f"the step cannot be captured into a graph: it returns an object of {type(leaf).__qualname__}, and"
                    " tensors in it would not be written by a replay: return tensors in tuples, lists or dictionaries"
                )
        return result

    def _memory(self, tensor: torch.Tensor) -> int | None:
        """The number of the memory in which a tensor lies; None if the step did not make it. Raises `CaptureRefused` if
        the memory is no longer as large as it was."""
        storage = self._storage(tensor)
        known = self._known.get(storage._cdata)
        if known is None:
            return None
        if storage.nbytes() > self.bytes[known[1]]:
            raise CaptureRefused(refusal(findings.RESIZED, self._calling))
        return known[1]

    def _reference(self, tensor: torch.Tensor) -> Any:
        memory = self._memory(tensor)
        if memory is None:
            return tensor
        size, stride = tuple(tensor.shape), tuple(tensor.stride())
        return Reference(
            memory, tensor.dtype, size, stride, int(tensor.storage_offset()), tensor.is_conj(), tensor.is_neg()
        )

    def _born(self, tensor: Any, taken: set[int]) -> Reference | None:
        """A reference to a result; None if it is no tensor, or a view of an argument, whose storages are `taken`."""
        if not isinstance(tensor, torch.Tensor):
            return None
        storage = self._storage(tensor)
        if storage._cdata in taken:
            return None
        # The weak reference keeps the address of a storage that is gone from being given to another.
        self._known[storage._cdata] = StorageWeakRef(storage), len(self.bytes)
        self.bytes.append(storage.nbytes())
        return self._reference(tensor)

    def _storage(self, tensor: torch.Tensor) -> torch.UntypedStorage:
        if not is_dense(tensor):
            raise CaptureRefused(refusal(findings.LAYOUT, self._calling))
        return tensor.untyped_storage()


class Tape:
    """A recorded step, ready to be run again. `result` is what the step returned, at fixed addresses."""

    def __init__(self, calls: Sequence[Replay], result: Any, arena_bytes: int) -> None:
        self._calls = tuple(calls)
        self.result = result
        self.arena_bytes = arena_bytes

    def __len__(self) -> int:
        """Operators and launches of one replay."""
        return len(self._calls)

    def replay(self) -> Any:
        """Run the step again on what lies at its addresses now; the returned tensors are overwritten by the next."""
        # No gradient is asked for: every operator goes straight to its kernel.
        with torch._C._AutoDispatchBelowAutograd():
            for call in self._calls:
                call()
        return self.result


def record(step: Callable[[], Any], arena: Arena) -> Tape:
    """Run `step` once and return the tape of it. What it returned is in the tape's `result` then.

    The step may return tensors and plain values, in tuples, named tuples, lists and dictionaries.
    Tensors that the step made share `arena` with those of other tapes, of which one runs at a time; what the step
    returns has memory of its own. Raises `CaptureRefused` naming operator, file and line, or what was returned.
    """
    recording = Recording()
    with recording.running():
        returned = step()
    result = recording.returned(returned)
    kept = {item.memory for item in references(result)}
    needed = without_repeats(recording.calls, kept)
    lifetimes = _lifetimes(needed, recording.bytes, kept)
    offsets, total = place(lifetimes)
    memory: dict[int, torch.Tensor] = {
        lifetime.memory: arena.part(offsets[lifetime.memory], lifetime.bytes, total) for lifetime in lifetimes
    }
    memory.update((number, torch.empty(recording.bytes[number], dtype=torch.uint8)) for number in kept)
    binding = _Binding(memory)
    tensors = binding.resolve(result)
    for here, there in zip(_tensors(returned), _tensors(tensors), strict=True):
        there.copy_(here)
    used = {item.memory for call in needed for item in references(inputs(call))} | kept
    calls = [replay for call in needed if (replay := binding.bind(call, used)) is not None]
    return Tape(calls, tensors, total)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def _lifetimes(calls: Sequence[RecordedCall], sizes: Sequence[int], kept: set[int]) -> list[Lifetime]:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, call in enumerate(calls):
        results = () if isinstance(call, LaunchCall) else call.results
        for reference in references((inputs(call), results)):
            first.setdefault(reference.memory, index)
            last[reference.memory] = index
    return [Lifetime(number, sizes[number], first[number], last[number]) for number in first if number not in kept]


class _Binding:
    """Turns recorded calls into functions without arguments."""

    def __init__(self, memory: Mapping[int, torch.Tensor]) -> None:
        self._memory = memory

    def resolve(self, tree: Any) -> Any:
        return mapped(tree, Reference, self._tensor)

    def _tensor(self, reference: Reference) -> torch.Tensor:
        place = self._memory[reference.memory]
        last = sum((size - 1) * stride for size, stride in zip(reference.size, reference.stride, strict=True))
        if all(reference.size) and (reference.offset + last + 1) * reference.dtype.itemsize > place.numel():
            raise CaptureRefused(
                f"the step cannot be captured into a graph: a tensor of {list(reference.size)} {reference.dtype} lies"
                f" outside its {place.numel()} bytes"
            )
        begin = place.storage_offset() // reference.dtype.itemsize + reference.offset
        tensor = torch.empty(0, dtype=reference.dtype).set_(
            place.untyped_storage(), begin, reference.size, reference.stride
        )
        if reference.conjugate:
            tensor = tensor.conj()
        return torch._neg_view(tensor) if reference.negative else tensor

    def bind(self, call: RecordedCall, used: set[int]) -> Replay | None:
        """The replay of one call; None if nothing has to run for it."""
        if isinstance(call, LaunchCall):
            return call.bind(*self.resolve(call.tensors))
        if only_allocates(call.operator):
            return None
        arguments, keywords = self.resolve(call.arguments), self.resolve(call.keywords)
        if not call.results:
            return bound(call.operator, arguments, keywords)
        into = [None if item is None else self._tensor(item) for item in call.results]
        if only_copies(call.operator):
            return bound(torch.ops.aten.copy_.default, (into[0], arguments[0]), {})
        form = out_form(call.operator)
        if form is not None and None not in into:
            named = {name: value for name, value in keywords.items() if name in form.arguments}
            return bound(form.operator, arguments, {**named, **dict(zip(form.names, into, strict=True))})
        wanted = {
            index: tensor
            for index, (item, tensor) in enumerate(zip(call.results, into, strict=True))
            if item is not None and tensor is not None and item.memory in used
        }
        return _copying(call.operator, arguments, keywords, wanted)


def _copying(
    operator: torch._ops.OpOverload,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
    wanted: Mapping[int, torch.Tensor],
) -> Replay:
    """The replay of an operator without an `out` form: its results are copied to where they belong."""
    run = bound(operator, arguments, keywords)
    returns = operator._schema.returns
    nested = len(returns) > 1 and any(isinstance(item.type, torch.ListType) for item in returns)
    results = leaves if nested else _results

    def replay() -> None:
        made = results(run())
        for index, tensor in wanted.items():
            tensor.copy_(made[index])

    return replay


def _results(result: Any) -> Sequence[Any]:
    return result if isinstance(result, tuple | list) else (result,)
