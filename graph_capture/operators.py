"""What a tape has to know of an operator: its form with `out` arguments, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OutForm(NamedTuple):
    """The overload that writes its results into arguments: their names in the order of the results, and the names of
    its other arguments."""

    operator: torch._ops.OpOverload
    names: tuple[str, ...]
    arguments: frozenset[str]


# How an operator that makes a tensor is told its kind; the `out` argument says the same.
_KIND = frozenset({"dtype", "layout", "device", "pin_memory"})
_COPIES = frozenset({"aten::clone", "aten::_to_copy"})
_MEMORY_ONLY = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"})


@cache
def out_form(operator: torch._ops.OpOverload) -> OutForm | None:
    """The `out` form of an operator that returns new tensors; None if it has none with the same arguments."""
    wanted = _arguments(operator)
    for name in operator.overloadpacket.overloads():
        other = getattr(operator.overloadpacket, name)
        outs = [item for item in other._schema.arguments if item.is_out]
        if not outs or len(outs) != len(operator._schema.returns) or any(str(item.type) != "Tensor" for item in outs):
            continue
        rest = _arguments(other)
        if [item for item in wanted if item in rest or item[0] not in _KIND] == rest:
            return OutForm(other, tuple(item.name for item in outs), frozenset(item[0] for item in rest))
    return None


def _arguments(operator: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(item.name, str(item.type)) for item in operator._schema.arguments if not item.is_out]


def only_copies(operator: torch._ops.OpOverload) -> bool:
    """Whether the result is the first argument, in another place or of another dtype."""
    return operator._schema.name in _COPIES


def only_allocates(operator: torch._ops.OpOverload) -> bool:
    """Whether the result is memory without a value."""
    return operator._schema.name in _MEMORY_ONLY


def bound(operator: torch._ops.OpOverload, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Callable[[], Any]:
    """A function without arguments that runs the operator on these.

    It is torch's own function for it where one runs this very operator with these very arguments, because that takes
    half the time in front of the kernel.
    """
    if operator._schema.is_mutable:
        name = operator._schema.name.partition("::")[2]
        given = by_name(operator, arguments, keywords)
        wanted = [(operator, {name: _comparable(value) for name, value in given.items()})]
        for owner in (torch, torch._C._nn, torch.Tensor):
            function = getattr(owner, name, None)
            if function is not None and _run_by(function, arguments, keywords) == wanted:
                return partial(function, *arguments, **keywords)
    return partial(operator._op, *arguments, **keywords)


class _NotRun(TorchDispatchMode):
    """Notes operators, and returns what they would write into as if they had run."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[torch._ops.OpOverload, dict[str, Any]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = by_name(operator, args, kwargs or {})
        self.noted.append((operator, {name: _comparable(value) for name, value in given.items()}))
        written = [given[item.name] for item in operator._schema.arguments if item.is_write]
        return written[0] if len(written) == 1 else tuple(written)


def _run_by(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> list[tuple[torch._ops.OpOverload, dict[str, Any]]]:
    """The operators that `function` would run, with their arguments; none if it does not take these."""
    # As at replay: a parameter of the model as argument asks for no gradient.
    with suppress(TypeError, RuntimeError), torch._C._AutoDispatchBelowAutograd(), _NotRun() as operators:
        function(*arguments, **keywords)
        return operators.noted
    return []


def by_name(operator: torch._ops.OpOverload, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments, defaults included."""
    parameters = operator._schema.arguments
    given = {parameter.name: value for parameter, value in zip(parameters, arguments, strict=False)}
    defaults = {parameter.name: parameter.default_value for parameter in parameters}
    return {**defaults, **given, **keywords}


def _comparable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ("tensor", value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return type(value), value
