"""Carries journals between nodes, whose ranks do not map the same memory.

Each rank has one counterpart on every other node: the rank that is as many-eth there. What a rank writes into its part
of the journal goes to its counterparts, and each writes what comes into the memory of its own node, where all ranks of
that node read it. Nobody waits: what has come is taken when the journal is read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.network import Incoming, framed

_OFFSET = struct.Struct("<I")


def counterparts(rank: int, nodes: Sequence[int]) -> list[int]:
    """The ranks of other nodes that are as many-eth there as `rank` on its own. nodes: [ranks] where each runs."""
    members: dict[int, list[int]] = {}
    for each, node in enumerate(nodes):
        members.setdefault(node, []).append(each)
    place = members[nodes[rank]].index(rank)
    return sorted(
        ranks[place] for node, ranks in members.items() if node != nodes[rank] and place < len(ranks)
    )  # fmt: skip


class Courier:
    """The connections of one rank to its counterparts."""

    def __init__(
        self, connections: Mapping[int, socket.socket], far: Collection[int], gone: Callable[[], Sequence[int]]
    ) -> None:
        """far: all ranks of other nodes. gone: ranks that are known not to live any more; counterparts are besides."""
        self._connections = dict(connections)
        self._far = frozenset(far)
        self._gone = gone
        self._ended: set[int] = set()
        self._incoming = {rank: Incoming(connection) for rank, connection in connections.items()}
        self._unsent = {rank: bytearray() for rank in connections}

    def has_ended(self, rank: int) -> bool | None:
        """Whether a rank of another node has ended; None for one of this node."""
        return rank in self._ended or rank in self._gone() if rank in self._far else None

    def send(self, offset: int, data: bytes) -> None:
        """`data` has been written at `offset` of this rank's part."""
        for rank, unsent in self._unsent.items():
            unsent += framed(_OFFSET.pack(offset) + data)
            # A counterpart that has ended is noticed by whoever waits for it.
            with contextlib.suppress(OSError):
                del unsent[: self._connections[rank].send(unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]

    def take(self, write: Callable[[int, int, bytes], None]) -> None:
        """Calls `write(rank, offset, data)` for everything that has come.

        Raises `ProtocolMismatch` for what is no part of a journal.
        """
        for rank, connection in list(self._connections.items()):
            try:
                while (frame := self._incoming[rank].take()) is not None:
                    if len(frame) < _OFFSET.size:
                        raise ProtocolMismatch(f"rank {rank} sent {len(frame)} bytes that are no part of a journal")
                    write(rank, _OFFSET.unpack_from(frame)[0], frame[_OFFSET.size :])
            except (EOFError, OSError):
                del self._connections[rank], self._unsent[rank]
                self._ended.add(rank)
                connection.close()
