"""How an operator is declared: by the schema of the real one, its arithmetic, and the shapes of what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.npu.operators.refusals import MissingName, NotEmulated

SCHEMAS = Path(__file__).with_name("schemas.txt")


class Operator(NamedTuple):
    """`compute` and `shapes` take the arguments that they know by name; any other must have its default."""

    schema: torch.FunctionSchema
    compute: Callable[..., Any]
    shapes: Callable[..., Any]

    @property
    def name(self) -> str:
        """Without its namespace."""
        name, overload = self.schema.name.partition("::")[2], self.schema.overload_name
        return f"{name}.{overload}" if overload else name


DECLARED: dict[str, Operator] = {}


@cache
def schemas() -> dict[str, str]:
    """Name with namespace and overload -> schema as the real library registers it."""
    lines = [line for line in SCHEMAS.read_text().splitlines() if line and not line.startswith("#")]
    return {line.partition("(")[0]: line for line in lines}


def nothing() -> None:
    """The result of an operator that only writes into its arguments."""


def operator(name: str, *, shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function computes the operator on CPU tensors; `shapes` makes what it returns, without values."""

    def declare(compute: Callable[..., Any]) -> Callable[..., Any]:
        DECLARED[name] = Operator(torch._C.parse_schema(schemas()[name]), compute, shapes)
        return compute

    return declare


def _kernel(declared: Operator, function: Callable[..., Any]) -> Callable[..., Any]:
    """What the dispatcher calls: `function` with the arguments that it takes."""
    known = set(inspect.signature(declared.compute).parameters)
    taken = inspect.signature(function).parameters

    def call(*arguments: Any, **keywords: Any) -> Any:
        given = dict(zip((argument.name for argument in declared.schema.arguments), arguments, strict=False)) | keywords
        for argument in declared.schema.arguments:
            value = given.setdefault(argument.name, argument.default_value)
            if argument.name not in known and not _is_default(value, argument.default_value):
                raise NotEmulated(declared.name, argument.name)
        return function(**{name: given[name] for name in taken})

    return call


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, torch.Tensor) and value == default)


class Namespace(torch._ops._OpNamespace):
    """`torch.ops.npu` and others, where what is not there is named as missing in the emulated NPU."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("__"):
                raise
            raise MissingName(f"operator {self.name}::{name}") from error


@cache
def register() -> tuple[torch.library.Library, ...]:
    """Registers every declared operator, with a kernel for CPU tensors and one for meta tensors. Once in a process."""
    libraries: dict[str, torch.library.Library] = {}
    for name, declared in DECLARED.items():
        namespace, _, rest = name.partition("::")
        if namespace not in libraries:
            libraries[namespace] = torch.library.Library(namespace, "FRAGMENT")
            setattr(torch.ops, namespace, Namespace(namespace))
        library = libraries[namespace]
        library.define(schemas()[name].partition("::")[2])
        library.impl(rest, _kernel(declared, declared.compute), "CPU")
        library.impl(rest, _kernel(declared, declared.shapes), "Meta")
    return tuple(libraries.values())
