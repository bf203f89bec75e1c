"""Launches: the parts of a step that a graph runs as a whole, as an accelerator runs a kernel.

What such a part does inside is its own affair: it may read counts that differ from replay to replay, and wait for other
ranks. All that a graph knows of it is a function over tensors whose addresses never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from sglang_ascend_moe.errors import CaptureRefused

Launch = Callable[[], None]
Bind = Callable[..., Launch]
"""Makes a launch of the tensors it works on: everything that can be done before the first replay is done here."""


class Recorder(Protocol):
    """What a capture is told of a launch that has just run."""

    def record_launch(self, bind: Bind, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None: ...


_capturing = False
_recorder: Recorder | None = None


def capturing() -> bool:
    """Whether the running step is being captured, or looked through before it is."""
    return _capturing


@contextmanager
def capture(recorder: Recorder | None = None) -> Iterator[None]:
    """Within it launches go to `recorder`; None for a step that is only looked through."""
    global _capturing, _recorder
    before = _capturing, _recorder
    _capturing, _recorder = True, recorder
    try:
        yield
    finally:
        _capturing, _recorder = before


def launch(bind: Bind, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None:
    """Run `bind(*reads, *writes)()`; while a step is captured, keep it for the replays too.

    reads, writes: every tensor of the step that the launch uses. A replay gets the same addresses each time, which for
    tensors that the step made are not the addresses of these ones.
    """
    global _capturing
    if not _capturing:
        bind(*reads, *writes)()
        return
    _capturing = False
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            bind(*reads, *writes)()
    finally:
        _capturing = True
    if _recorder is not None:
        _recorder.record_launch(bind, reads, writes)


def refuse_capture(what: str) -> None:
    """Raise `CaptureRefused` if the running step is being captured."""
    if _capturing:
        raise CaptureRefused(what)
