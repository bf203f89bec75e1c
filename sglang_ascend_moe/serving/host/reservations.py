"""What the servers of this machine have reserved of its memory and not touched yet.

Memory is touched when it is needed, so what the kernel calls available does not say what running servers may still
come to use. Each of their processes therefore holds a socket in the abstract namespace whose name says how much it has
reserved: everybody can read the names, nothing lies in the file system, and a name goes with its process.
"""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from sglang_ascend_moe.errors import PeerTimeout

_PREFIX = "sglang-ascend-moe memory"
_SOCKETS = Path("/proc/net/unix")
_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.01


class Outstanding(NamedTuple):
    """`untouched` bytes that `process` has reserved and may still use. group: of all processes of one server."""

    group: str
    process: int
    untouched: int


_held: list[socket.socket] = []


def _forget_in_child() -> None:
    for item in list(_held):
        _release(item)


os.register_at_fork(after_in_child=_forget_in_child)


def _hold(name: str) -> socket.socket:
    """A socket of that abstract name, which a forked child does not keep. Raises OSError if the name is taken."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0{_PREFIX} {name}")
    except OSError:
        held.close()
        raise
    _held.append(held)
    return held


def _release(held: socket.socket) -> None:
    held.close()
    if held in _held:
        _held.remove(held)


class Reservation:
    """Of `size` bytes, by this process, those that it has touched included; until `close` or the end of the process.

    group: the same for all processes of one server, without spaces.
    """

    def __init__(self, group: str, size: int) -> None:
        self.size = size
        self._socket = _hold(f"{group} {os.getpid()} {size} {next(_numbers)}")

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        _release(self._socket)


_numbers = itertools.count()


class Exclusive:
    """A context in which no other process of this machine reserves memory. Raises `PeerTimeout` after ten seconds."""

    def __enter__(self) -> Self:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                self._socket = _hold("lock")
            except OSError:
                if time.monotonic() > until:
                    raise PeerTimeout(
                        f"another server has been reserving memory of this machine for {_LOCK_SECONDS:.0f} s; is one"
                        " stopped while it starts?"
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                return self

    def __exit__(self, *_exception: object) -> None:
        _release(self._socket)


def outstanding(*, except_group: str | None = None) -> list[Outstanding]:
    """What all processes but those of `except_group` may still use, the largest first."""
    found = []
    for group, process, size in _reserved():
        if group != except_group and (untouched := size - touched(process)) > 0:
            found.append(Outstanding(group, process, untouched))
    return sorted(found, key=lambda item: item.untouched, reverse=True)


def _reserved() -> Iterator[tuple[str, int, int]]:
    """Group, process and bytes of every reservation that this process can see."""
    try:
        lines = _SOCKETS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # An abstract name is shown with an @ in place of its zero byte.
        name = line.partition(f"@{_PREFIX} ")[2].split()
        if len(name) == 4:
            yield name[0], int(name[1]), int(name[2])


def touched(process: int) -> int:
    """Bytes that `process` and its descendants have in memory, shared ones by their part; 0 for one that is gone."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for member in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _resident(member)
    return total


def _resident(process: Any) -> int:
    import psutil

    try:
        return process.memory_full_info().pss
    except psutil.AccessDenied:
        # Of another user: what is surely its own.
        memory = process.memory_info()
        return max(0, memory.rss - memory.shared)
