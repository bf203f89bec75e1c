"""Whether an exception is a process's own, or only says that another process does not answer any more."""

from __future__ import annotations

from types import FrameType
from typing import TYPE_CHECKING

from sglang_ascend_moe.errors import PeerFault

if TYPE_CHECKING:
    from torch import distributed


def blames_peer(error: BaseException) -> bool:
    """Judged by the type of the exception, and by where it was raised; never by its words."""
    from torch import distributed

    if isinstance(error, PeerFault | EOFError | ConnectionError | distributed.DistError):
        return True
    # What gloo meets has no type of its own.
    return type(error) is RuntimeError and _waits_for_peers(_origin(error), distributed.Work)


def _origin(error: BaseException) -> FrameType | None:
    """The frame that raised an exception, or called the native code that did."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def _waits_for_peers(frame: FrameType | None, work: type[distributed.Work]) -> bool:
    """Whether a frame is one of a collective of torch, or holds one that did not succeed."""
    if frame is None:
        return False
    if frame.f_globals.get("__name__", "").startswith("torch.distributed."):
        return True
    return any(isinstance(value, work) and not value.is_success() for value in frame.f_locals.values())
