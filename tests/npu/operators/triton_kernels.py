"""Kernels of Triton on the emulated NPU: Triton's interpreter runs them, in the order of the stream.

A launch is an operator like others. Its kernel and what is no tensor among its arguments are kept under a number; the
interpreter works on the memory of the device as the host reaches it, and so do pointers that a kernel loads.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from tests.npu.device.library import native

_SCHEMA = "launch(Tensor(a!)[] tensors, int number) -> ()"
_interpreting = threading.Lock()
"""Triton's interpreter keeps in the process which program it is at."""


class _Place(msgspec.Struct, frozen=True):
    """Stands for a tensor among the arguments of a launch."""

    index: int


class _Launch(NamedTuple):
    """A kernel, how many programs of it run, and its arguments with places for tensors."""

    kernel: Callable[..., None]
    parameters: tuple[str, ...]
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


_numbers: dict[_Launch, int] = {}
"""Launches that differ in nothing have the same number, so that a capture sees the same call."""
_launches: list[_Launch] = []


def _put(executor: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Puts a launch on the current stream."""
    tensors: list[torch.Tensor] = []

    def place(tensor: torch.Tensor) -> _Place:
        tensors.append(tensor)
        return _Place(len(tensors) - 1)

    taken = inspect.getfullargspec(executor.fn).args
    keywords = {name: value for name, value in keywords.items() if name in taken}
    grid = executor.grid
    if callable(grid):
        grid = grid(inspect.getcallargs(executor.fn, *arguments, **keywords))
    arguments, keywords = tree_map_only(torch.Tensor, place, (arguments, keywords))
    launch = _Launch(executor.fn, tuple(executor.arg_names), tuple(grid), arguments, tuple(sorted(keywords.items())))
    if launch not in _numbers:
        _launches.append(launch)
        _numbers[launch] = len(_launches) - 1
    torch.ops.emulated_triton.launch(tensors, _numbers[launch])


def _run(tensors: list[torch.Tensor], number: int) -> None:
    """On the thread of the stream, or at once where all tensors are the host's."""
    from triton.runtime import interpreter

    launch = _launches[number]
    arguments, keywords = tree_map_only(
        _Place, lambda place: tensors[place.index], (launch.arguments, dict(launch.keywords))
    )
    executor = interpreter.GridExecutor(launch.kernel, launch.parameters, launch.grid)
    # The interpreter would copy tensors to the host and back.
    executor._init_args_hst = lambda given, named: (given, named)
    executor._restore_args_dev = lambda *_: None
    with _interpreting:
        _interpret(executor, *arguments, **keywords)


def _on_host(pointers: np.ndarray) -> np.ndarray:
    """Where the host reaches what lies at addresses of the device; others as they are."""
    translated = pointers
    for begin, length, host in native().address_ranges():
        inside = (pointers >= np.uint64(begin)) & (pointers < np.uint64(begin + length))
        translated = np.where(inside, pointers - np.uint64(begin) + np.uint64(host), translated)
    return translated


def _translating(access: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return access(*arguments[:place], _on_host(arguments[place]), *arguments[place + 1 :])

    return call


def install() -> None:
    """Kernels that are launched from now on run in this way; those that were declared before are not interpreted."""
    from triton.runtime import interpreter

    library = torch.library.Library("emulated_triton", "DEF")
    library.define(_SCHEMA)
    library.impl("launch", _run, "CPU")
    _keep.append(library)
    accesses = interpreter._interpreter
    interpreter._interpreter = SimpleNamespace(
        load=_translating(accesses.load),
        store=_translating(accesses.store),
        atomic_cas=_translating(accesses.atomic_cas),
        atomic_rmw=_translating(accesses.atomic_rmw, 1),
    )
    global _interpret
    _interpret = interpreter.GridExecutor.__call__

    def launch(executor: Any, *arguments: Any, **keywords: Any) -> None:
        _put(executor, arguments, keywords)

    interpreter.GridExecutor.__call__ = launch


_interpret: Callable[..., None]
_keep: list[torch.library.Library] = []
