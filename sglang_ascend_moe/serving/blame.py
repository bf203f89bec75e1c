"""Whether an exception is a process's own, or only says that another process does not answer any more."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getattr_static
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang_ascend_moe.errors import PeerFault

if TYPE_CHECKING:
    from torch import distributed

_TORCH = "torch.distributed."
# Between a caller and a collective torch has functions of this name, which only measure.
_MEASURES = "wrapper"


class Collective(NamedTuple):
    """A collective of torch by the name of its function; group: None for the default group."""

    name: str
    group: Any


def blames_peer(error: BaseException) -> bool:
    """Judged by the type of the exception, and by where it was raised; never by its words."""
    from torch import distributed

    if isinstance(error, PeerFault | EOFError | ConnectionError | distributed.DistError):
        return True
    # What gloo meets has no type of its own.
    return type(error) is RuntimeError and _waits_for_peers(_origin(error), distributed.Work)


def collective_of(error: BaseException) -> Collective | None:
    """The collective that raised an exception: a function of torch, or one of ours that is called as torch's is and
    holds group and work. None if none did, or it cannot be told."""
    from torch import distributed

    for frame in _frames(error):
        of_torch = frame.f_globals.get("__name__", "").startswith(_TORCH) and frame.f_code.co_name != _MEASURES
        if of_torch or ("group" in frame.f_locals and _holds_failed(frame, distributed.Work)):
            return Collective(frame.f_code.co_name, frame.f_locals.get("group"))
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _origin(error: BaseException) -> FrameType | None:
    """The frame that raised an exception, or called the native code that did."""
    return next(reversed(list(_frames(error))), None)


def _waits_for_peers(frame: FrameType | None, work: type[distributed.Work]) -> bool:
    """Whether a frame is one of a collective of torch, or holds one that did not succeed."""
    if frame is None:
        return False
    if frame.f_globals.get("__name__", "").startswith(_TORCH):
        return True
    return _holds_failed(frame, work)


def _holds_failed(frame: FrameType, work: type[distributed.Work]) -> bool:
    # SGLang keeps those of transfers between two ranks with what they transfer.
    found = (getattr_static(value, "work", value) for value in frame.f_locals.values())
    return any(isinstance(value, work) and not value.is_success() for value in found)
