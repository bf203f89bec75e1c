"""The capture guard: runs a step before it is captured, and refuses what a graph could not replay or would freeze.

A function mode sees reads of values that no operator does, a dispatch mode sees every operator, and the runs are
compared with each other: operators, shapes, Python values, and the addresses of what the step did not make itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused, InvalidInput
from sglang_ascend_moe.graph_capture import findings
from sglang_ascend_moe.graph_capture.findings import (
    MOST_SHOWN,
    Finding,
    Rule,
    refusal,
    shown_name,
    tensors_in,
    user_line,
)
from sglang_ascend_moe.graph_capture.operators import by_name
from sglang_ascend_moe.graph_capture.watched_calls import WatchedCall, WatchedCalls, difference
from sglang_ascend_moe.windows import allocations

_LIFTS = ("aten.lift_fresh", "aten.lift")
"""Operators that make a tensor out of Python values."""
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
_SPLITS = (torch.tensor_split, Tensor.tensor_split)
_PACKAGE = str(Path(allocations.__file__).parents[1])


class Calling(NamedTuple):
    """The function of torch that Python is calling."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def name(self) -> str:
        owner = getattr(self.function, "__qualname__", "").rpartition(".")[0]
        return f"{'Tensor' if owner.startswith('Tensor') else 'torch'}.{getattr(self.function, '__name__', '')}"

    @property
    def takes_tensors_in_lists(self) -> bool:
        """Whether tensors lie in lists that would have to be read to make one tensor of them."""
        if isinstance(self.function, FunctionType):
            # What it makes tensors of inside is out of sight.
            return False
        given = (*self.arguments, *self.keywords.values())
        if self.function in _INDEXING and isinstance(given[1], tuple):
            # An index for each dimension: tensors among them are used as they are.
            given = (*given[1], *given[2:])
        return any(isinstance(item, list | tuple) and tensors_in(item) for item in given)


def check(fn: Callable[[], object], *, passes: int = 2, vary: Callable[[], object] | None = None) -> None:
    """Runs the step `fn` once to settle, then `passes` times under watch; returns if it can be captured.

    `fn` is what would be captured: it has to read the same tensors every time. `vary`, if given, is called before each
    watched run to change what is in them. Parts that run as `launches` are not looked into, and neither are threads.

    Raises `CaptureRefused` naming operator, file and line of each finding and what to do, after the last run;
    `InvalidInput` for fewer than 2 passes. Whatever `fn` raises is passed on.
    """
    runs = DryRuns(fn, passes)
    for run in range(runs.total):
        if run and vary is not None:
            vary()
        runs.run()
    if runs.findings:
        raise CaptureRefused(f"the step cannot be captured into a graph: {'; '.join(in_words(runs.findings))}")


def in_words(found: Sequence[Finding]) -> list[str]:
    """Findings as they are shown: the first ones, and how many more there are."""
    more = [f"and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
    return [str(finding) for finding in found[:MOST_SHOWN]] + more


class DryRuns:
    """Runs of a step in front of its capture: one in which it may set up what it keeps, then those that are watched."""

    def __init__(self, fn: Callable[[], object], passes: int, *, into_launches: bool = False) -> None:
        """passes: watched runs. into_launches: what `launches` do has to be captured too, and is looked into, for which
        they run once more. Raises `InvalidInput` for fewer than 2 passes.
        """
        if passes < 2:
            raise InvalidInput(f"passes={passes}: a step has to run at least 2 times to be compared with itself")
        self.total = 1 + passes
        self._fn = fn
        self._watch = _Watch()
        self._recorder = _LaunchesAgain() if into_launches else None
        self._settled = False

    @property
    def findings(self) -> list[Finding]:
        return list(self._watch.findings.values())

    def run(self) -> None:
        """The next run. What the step raises is passed on."""
        watch = self._watch
        with launches.capture(self._recorder):
            if not self._settled:
                self._fn()
                self._settled = True
                return
            watch.begin_run()
            with allocations.watch(watch.on_allocation), _Operators(watch), _Functions(watch):
                self._fn()
            watch.end_run()


class _LaunchesAgain:
    """Runs what each launch does once more, as a part of the step, so that the guard sees its operators."""

    def record_launch(self, bind: launches.Bind, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None:
        bind(*reads, *writes)()


class _Watch:
    """What the runs of one step have shown so far."""

    def __init__(self) -> None:
        self.findings: dict[tuple[str, int, str], Finding] = {}
        self.calling: Calling | None = None
        self._recorder = WatchedCalls()
        # The calls of the first run, to compare with.
        self._before: list[WatchedCall] | None = None

    def begin_run(self) -> None:
        self._recorder.begin_run()

    def end_run(self) -> None:
        calls = self._recorder.calls
        if self._recorder.run == 1:
            self._before = calls
        elif self._before is not None and len(calls) < len(self._before):
            self._add(Rule("ran before, and not in a later run", findings.SAME_PATH), self._before[len(calls)])

    def on_operator(self, func: Any, arguments: dict[str, Any]) -> None:
        name = shown_name(func)
        if name in _LIFTS and self.calling is not None and self.calling.takes_tensors_in_lists:
            self.on_read(self.calling.name)
        call = self._recorder.record(self.shown(name), *user_line(), arguments, constant=name in _LIFTS)
        rule = findings.broken_rule(func, arguments)
        if rule is not None:
            self._add(rule, call)
        if self._before is not None:
            index = len(self._recorder.calls) - 1
            changed = difference(self._before[index] if index < len(self._before) else None, call)
            if changed is not None:
                self._add(changed, call)
                # Whatever follows differs as a consequence.
                self._before = None

    def shown(self, operator: str) -> str:
        return f"{self.calling.name} ({operator})" if self.calling is not None else operator

    def on_result(self, result: Any) -> None:
        self._recorder.made(result)

    def on_read(self, name: str) -> None:
        self._add(findings.HOST_READ, WatchedCall(name, *user_line(), ()))

    def on_allocation(self, total_bytes: int) -> None:
        self._add(findings.NEW_WINDOW, WatchedCall(f"a window of {total_bytes} bytes", *user_line(_PACKAGE), ()))

    def _add(self, rule: Rule, call: WatchedCall) -> None:
        finding = Finding(call.operator, call.file, call.line, rule.problem, rule.remedy)
        # `Tensor.item` is seen by both modes.
        self.findings.setdefault((call.file, call.line, rule.problem), finding)


class _Functions(TorchFunctionMode):
    """Sees what Python calls: reads of values, and the names under which the user knows the operators."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        watch = self._watch
        kwargs = kwargs or {}
        outer, watch.calling = watch.calling, Calling(func, args, kwargs)
        if func in findings.HOST_READS:
            watch.on_read(findings.HOST_READS[func])
        elif func in _SPLITS and any(isinstance(item, Tensor) for item in (*args[1:], *kwargs.values())):
            watch.on_read(watch.calling.name)
        try:
            return func(*args, **kwargs)
        finally:
            watch.calling = outer


class _Operators(TorchDispatchMode):
    """Sees every operator, composite ones by the operators that they are made of."""

    supports_higher_order_operators = True

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            raise CaptureRefused(refusal(findings.HIGHER_ORDER, self._watch.shown(shown_name(func))))
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        with torch._C.DisableTorchFunction():
            self._watch.on_operator(func, by_name(func, args, kwargs))
            result = func(*args, **kwargs)
            self._watch.on_result(result)
        return result
