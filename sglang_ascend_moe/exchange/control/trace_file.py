"""The file into which the kernels of a rank write down the steps of its exchanges: a header and a ring of events.

It is mapped, so nothing is flushed, and what was written stays when the process is killed. The oldest events are
overwritten.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import Block, decode, encode
from sglang_ascend_moe.exchange.control.machine import Machine, this_machine
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.windows.layout import ExchangeParameters

FILE_SUFFIX = ".trace"
CAPACITY = 1 << 17
"""Events of a file, in 8 MiB."""
_RING_AT = 4096
_LENGTH = struct.Struct("<I")
_RING = struct.Struct("<8Q")
"""As ExchangeTrace."""
_EVENT = struct.Struct("<6Q2i2I")
"""As ExchangeTraceEvent."""


class TraceHeader(Block, frozen=True, kw_only=True):
    """Whose steps a file holds.

    release: of this package. stage: of the pipeline; None if there is only one. monotonic_ns, realtime_ns: both clocks
    at one moment; events are in the first one's time, which all processes of a machine share.
    """

    release: str
    parameters: ExchangeParameters
    stage: int | None
    process: int
    machine: Machine
    capacity: Annotated[int, Meta(ge=1, le=1 << 24)]
    monotonic_ns: int
    realtime_ns: int


class TraceEvent(NamedTuple):
    """A step of a rank, as ExchangeTraceEvent of exchange.h."""

    begin_ns: int
    end_ns: int
    epoch: int
    waited_ns: int
    rows: int
    bytes: int
    waited_for: int
    layer: int
    step: int
    kind: int


class Trace(NamedTuple):
    """What is in the file of a rank: its events as they began, and how many others were overwritten."""

    header: TraceHeader
    events: list[TraceEvent]
    lost: int


class TraceFile:
    """A file in which a rank's session writes down its steps, at `address`, as long as this object lives."""

    def __init__(
        self, folder: Path, session: bytes, rank: int, parameters: ExchangeParameters, stage: int | None = None,
        capacity: int = CAPACITY,
    ) -> None:  # fmt: skip
        """Takes the place of one that the rank has made in this session before.

        Raises `InvalidInput` if the folder or the file cannot be made.
        """
        header = encode(
            TraceHeader(
                session=session, rank=rank, release=version("sglang-ascend-moe"), parameters=parameters, stage=stage,
                process=os.getpid(), machine=this_machine(), capacity=capacity, monotonic_ns=time.monotonic_ns(),
                realtime_ns=time.time_ns(),
            )
        )  # fmt: skip
        size = _RING_AT + _RING.size + capacity * _EVENT.size
        path = folder / f"{session.hex()[:12]}-rank{rank}{FILE_SUFFIX}"
        partial = path.with_suffix(".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("w+b") as file:
                # What is not there could not be written into later.
                os.posix_fallocate(file.fileno(), 0, size)
                self._memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED)
            self._memory[: _LENGTH.size + len(header)] = _LENGTH.pack(len(header)) + header
            _RING.pack_into(self._memory, _RING_AT, capacity, *[0] * 7)
            partial.rename(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise InvalidInput(
                f"trace={str(folder)!r} (--ascend-moe-trace): {error}; give a folder that can be written, with"
                f" {size} bytes left for each rank"
            ) from error
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + _RING_AT


def read_trace(path: Path) -> Trace:
    """What a rank has written so far. Raises `ProtocolMismatch` for a file that is none of this release."""
    try:
        data = path.read_bytes()
        begun = _ring_of(path)
    except OSError as error:
        raise ProtocolMismatch(f"{path}: {error.strerror}; give a folder of --ascend-moe-trace") from error
    header = _header_of(path, data)
    if len(data) != _RING_AT + _RING.size + header.capacity * _EVENT.size:
        raise ProtocolMismatch(
            f"{path} has {len(data)} bytes, which a trace of {header.capacity} events has not; give the whole file"
        )
    ring = memoryview(data)[_RING_AT + _RING.size :]
    _, written, lost, *_ = _RING.unpack_from(data, _RING_AT)
    # Those before were overwritten, while the file was read too.
    first = max(0, begun - header.capacity)
    events = [
        TraceEvent._make(_EVENT.unpack_from(ring, number % header.capacity * _EVENT.size))
        for number in range(first, min(written, begun))
    ]
    # The process may have ended between taking a place and writing into it.
    events = [event for event in events if event.begin_ns >= events[0].begin_ns > 0]
    for event in events:
        if event.step > max(Step) or event.kind > max(Kind) or not -1 <= event.waited_for < header.parameters.ranks:
            raise ProtocolMismatch(f"{path}: no rank writes {event}; give a folder of --ascend-moe-trace")
    return Trace(header, events, first + lost)


def _ring_of(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(_RING_AT)
        ring = file.read(_RING.size)
    return _RING.unpack(ring)[1] if len(ring) == _RING.size else 0


def _header_of(path: Path, data: bytes) -> TraceHeader:
    try:
        (length,) = _LENGTH.unpack_from(data)
        header = decode(data[_LENGTH.size : min(_RING_AT, _LENGTH.size + length)], TraceHeader)
    except (struct.error, ProtocolMismatch) as error:
        raise ProtocolMismatch(
            f"{path} is no trace of this release: {error}; give a folder of --ascend-moe-trace"
        ) from error
    if header.release != (ours := version("sglang-ascend-moe")):
        raise ProtocolMismatch(
            f"{path} was written by release {header.release}, this is {ours}; use the `ascend-moe trace` of that one"
        )
    return header
