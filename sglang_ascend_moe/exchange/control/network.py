"""TCP between nodes: who listens where, blocks in frames, and connections that end when the other side is silent."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections import deque
from typing import NamedTuple

from sglang_ascend_moe.errors import InvalidInput, PeerLost, PeerTimeout
from sglang_ascend_moe.exchange.control.blocks import MAX_BLOCK_BYTES

MAX_FRAME_BYTES = MAX_BLOCK_BYTES + 256
"""A block with its seal."""

PORTS_AFTER = 14
"""Node 0's launcher listens so many ports after that of `--dist-init-addr`; SGLang takes 1 to 6, and 13, after it."""

_LENGTH = struct.Struct("<I")
_RETRY_S = 0.2
_CALL_S = 10.0
"""How long one call may go unanswered before the next."""
_WAITING_CALLERS = 1024
_PROBES = 3
"""Unanswered probes of the kernel after which a connection ends."""


class Address(NamedTuple):
    """Where a process listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in `HOST:PORT` or `[HOST]:PORT`. Raises `InvalidInput`, naming the flag."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidInput(f"--dist-init-addr {text!r}: write HOST:PORT, an address of node 0, such as 10.0.0.1:5000")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def own_host(towards: Address) -> str:
    """The address of this machine from which it reaches `towards`; nothing is sent.

    Raises `InvalidInput`, naming the address, if there is no way to it.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(*towards, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InvalidInput(
            f"there is no way from this machine to {towards} ({error}); --dist-init-addr has to name an address of node"
            " 0 that all nodes reach"
        ) from error


def listen(at: Address) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `InvalidInput`, naming the address, if it cannot be had."""
    try:
        family, _, _, _, place = socket.getaddrinfo(*at, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(_WAITING_CALLERS)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InvalidInput(
            f"this machine cannot listen at {at} ({error}); --dist-init-addr has to name an address of node 0, with a"
            f" port after which {PORTS_AFTER} more are free, and only one launcher is --node-rank 0"
        ) from error
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where `listener` listens."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def call(at: Address, until: float) -> socket.socket:
    """A connection to whoever listens at `at`, who may not do so yet. `until`: a time of `time.monotonic`.

    Raises `PeerTimeout`, naming the address and why the last try failed.
    """
    while True:
        left = until - time.monotonic()
        try:
            connection = socket.create_connection(at, timeout=max(_RETRY_S, min(left, _CALL_S)))
            connection.settimeout(None)
            return connection
        except OSError as error:
            if left <= 0:
                raise PeerTimeout(f"nobody answers at {at} ({error})") from error
        time.sleep(_RETRY_S)


def end_when_silent(connection: socket.socket, seconds: float) -> None:
    """The kernel ends `connection` when the other side's machine has not answered for about `seconds`, at least 4."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds / 4))),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds / 4))),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(4000, int(seconds * 1000))),
    ):
        connection.setsockopt(level, option, value)


def hang_up(connection: socket.socket) -> None:
    """Closes it; the other end knows at once, also if another thread waits at this one or has a copy of it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def framed(data: bytes) -> bytes:
    """`data` as it travels."""
    return _LENGTH.pack(len(data)) + data


class Incoming:
    """The frames that come over one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()
        self._frames: deque[bytes] = deque()
        self._ended = False

    def take(self) -> bytes | None:
        """The next frame, without waiting; None if it has not come.

        Raises EOFError if the other side has closed, or sends what is no frame, OSError if the connection is broken.
        """
        if not self._frames:
            self._read()
        if self._frames:
            return self._frames.popleft()
        if self._ended:
            raise EOFError("the other end has closed the connection")
        return None

    def receive(self, until: float, who: str) -> bytes:
        """The next frame; `until`: a time of `time.monotonic`.

        Raises `PeerLost` or `PeerTimeout`, naming `who`, if it does not come.
        """
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while True:
            try:
                if (frame := self.take()) is not None:
                    return frame
            except (EOFError, OSError) as error:
                raise PeerLost(f"{who} has hung up ({error})") from error
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise PeerTimeout(f"{who} has not answered")

    def _read(self) -> None:
        try:
            while data := self._connection.recv(1 << 16, socket.MSG_DONTWAIT):
                self._received += data
            self._ended = True
        except BlockingIOError:
            pass
        while len(self._received) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._received)
            if size > MAX_FRAME_BYTES:
                raise EOFError(f"a frame of {size} bytes exceeds {MAX_FRAME_BYTES}")
            end = _LENGTH.size + size
            if len(self._received) < end:
                break
            self._frames.append(bytes(self._received[_LENGTH.size : end]))
            del self._received[:end]
