"""Blocks over one connection between processes of different nodes, each sealed for its place in the order."""

from __future__ import annotations

import socket
import struct
import threading

from sglang_ascend_moe.errors import PeerLost, ProtocolMismatch
from sglang_ascend_moe.exchange.control.network import Incoming, framed, hang_up
from sglang_ascend_moe.exchange.control.secret import (
    CHALLENGE_BYTES,
    NO_SEAL,
    SEAL_BYTES,
    Secret,
    draw_challenge,
    require_seal,
)

_SENDER = struct.Struct("<I")


class Channel:
    """One end. Blocks may be sent from any thread; one thread takes them.

    A seal covers who sends the block, a challenge of each end, and how many blocks came before it.
    """

    def __init__(self, connection: socket.socket, own: int, secret: Secret | None) -> None:
        """own: the number of this process's node. The connection belongs to the channel from now on.

        Raises OSError if the connection has ended.
        """
        self.connection = connection
        self._own = own
        self._secret = secret
        self._incoming = Incoming(connection)
        self._drawn = draw_challenge()
        self._challenges: list[bytes] = []
        self._sent = self._taken = 0
        self._sending = threading.Lock()
        self.peer: int | None = None
        """The node of the other end, from its first block on."""
        connection.sendall(framed(self._drawn))

    def fileno(self) -> int:
        return self.connection.fileno()

    def close(self) -> None:
        hang_up(self.connection)

    def begin(self, until: float, who: str) -> None:
        """Waits for what the other end says first; from then on blocks can be sent. Raises as `receive`."""
        if not self.begun:
            try:
                self._take_challenge(self._incoming.receive(until, who))
            except EOFError as error:
                raise PeerLost(f"{who} is no node ({error})") from error

    @property
    def begun(self) -> bool:
        """Whether blocks can be sent."""
        return bool(self._challenges)

    def send(self, data: bytes) -> None:
        """Raises OSError if the connection has ended."""
        with self._sending:
            seal = NO_SEAL
            if self._secret is not None:
                seal = self._secret.seal(_place(self._sent), self._own, self._challenges, data)
            self._sent += 1
            self.connection.sendall(framed(_SENDER.pack(self._own) + seal + data))

    def take(self, who: str) -> bytes | None:
        """The next block, without waiting; None if it has not come.

        Raises `ProtocolMismatch`, naming `who`, for a wrong seal, EOFError and OSError if the other end is gone, or
        sends what is no block.
        """
        while (frame := self._incoming.take()) is not None:
            if self.begun:
                return self._unsealed(frame, who)
            self._take_challenge(frame)
        return None

    def receive(self, until: float, who: str) -> bytes:
        """The next block; `until`: a time of `time.monotonic`. Raises as `take`, `PeerTimeout` and `PeerLost`."""
        self.begin(until, who)
        try:
            return self._unsealed(self._incoming.receive(until, who), who)
        except EOFError as error:
            raise PeerLost(f"{who} has hung up ({error})") from error

    def _take_challenge(self, challenge: bytes) -> None:
        if len(challenge) != CHALLENGE_BYTES:
            raise EOFError(f"a challenge of {len(challenge)} bytes, where {CHALLENGE_BYTES} are expected")
        # In an order in which both ends have them.
        self._challenges = sorted((self._drawn, challenge))

    def _unsealed(self, frame: bytes, who: str) -> bytes:
        begin = _SENDER.size + SEAL_BYTES
        if len(frame) < begin:
            raise EOFError(f"a frame of {len(frame)} bytes, which is no block")
        (sender,), seal, data = _SENDER.unpack_from(frame), frame[_SENDER.size : begin], frame[begin:]
        if self.peer not in (None, sender):
            raise ProtocolMismatch(f"{who} sends blocks of node {sender} over the channel of node {self.peer}")
        require_seal(self._secret, seal, _place(self._taken), sender, self._challenges, data, f"node {sender} ({who})")
        self._taken += 1
        self.peer = sender
        return data


def _place(number: int) -> str:
    return f"block {number} between nodes"
