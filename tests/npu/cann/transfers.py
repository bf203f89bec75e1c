"""memfabric's transfers between emulated NPUs of one machine: what SGLang's `ascend` backend of disaggregation calls.

An engine listens on the loopback; who writes to it connects and sends addresses, lengths and bytes. Both ends reach
memory as soon as they are asked, not in the order of any stream, as a transfer does that another chip carries out.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from tests.npu.device.library import native

DONE, REFUSED = 0, -1
_LENGTH = struct.Struct("=Q")


class _Region(NamedTuple):
    begin: int
    length: int


class _Write(msgspec.Struct, frozen=True):
    """What is to be written; the bytes of all pieces follow it."""

    store_url: str
    addresses: list[int]
    lengths: list[int]


class TransDataOpType(Enum):
    """How a transfer is carried out, which makes no difference here."""

    SDMA = 0
    DEVICE_RDMA = 1


def create_config_store(store_url: str) -> None:
    """Where engines find each other; here the sessions' names say it. Raises ValueError for what is no address."""
    if not store_url.startswith("tcp://"):
        raise ValueError(f"{store_url}: a store is at tcp://HOST:PORT")


class TransferEngine:
    """One end of transfers, under the names of memfabric's."""

    TransDataOpType = TransDataOpType

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._store_url = ""
        self._regions: dict[int, _Region] = {}
        self._connections: dict[str, socket.socket] = {}
        self._lock = threading.Lock()

    def get_rpc_port(self) -> int:
        return self._listening.getsockname()[1]

    def initialize(
        self, store_url: str | None, session_id: str, role: str, device_id: int, operation: TransDataOpType
    ) -> int:
        """Engines that were given the same store find each other."""
        del session_id, role, device_id, operation
        if not store_url:
            return REFUSED
        self._store_url = store_url
        threading.Thread(target=self._accept, name="emulated transfers", daemon=True).start()
        return DONE

    def register_memory(self, address: int, length: int) -> int:
        """What others may write to, of the device or of the host."""
        self._regions[address] = _Region(address, length)
        return DONE

    def batch_register_memory(self, addresses: Sequence[int], lengths: Sequence[int]) -> int:
        for address, length in zip(addresses, lengths, strict=True):
            self.register_memory(address, length)
        return DONE

    def unregister_memory(self, address: int) -> int:
        return DONE if self._regions.pop(address, None) else REFUSED

    def batch_unregister_memory(self, addresses: Sequence[int]) -> int:
        return min((self.unregister_memory(address) for address in addresses), default=DONE)

    def send_probe(self, session_id: str) -> int:
        return self.batch_transfer_sync_write(session_id, [], [], [])

    def transfer_sync_write(self, session_id: str, buffer: int, peer_address: int, length: int) -> int:
        return self.batch_transfer_sync_write(session_id, [buffer], [peer_address], [length])

    def batch_transfer_sync_write(
        self, session_id: str, buffers: Sequence[int], peer_addresses: Sequence[int], lengths: Sequence[int]
    ) -> int:
        """Copies own buffers to where the engine `session_id` has registered memory; returns when they are there."""
        write = _Write(self._store_url, [int(place) for place in peer_addresses], [int(length) for length in lengths])
        with self._lock:
            try:
                peer = self._connection(session_id)
                _send(peer, msgspec.msgpack.encode(write))
                for buffer, length in zip(buffers, write.lengths, strict=True):
                    peer.sendall(ctypes.string_at(_on_host(int(buffer)), length))
                return _LENGTH.unpack(_receive(peer, _LENGTH.size))[0] - 1
            except OSError:
                self._connections.pop(session_id, None)
                return REFUSED

    def _connection(self, session_id: str) -> socket.socket:
        if session_id not in self._connections:
            host, _, port = session_id.rpartition(":")
            self._connections[session_id] = socket.create_connection((host.strip("[]"), int(port)))
        return self._connections[session_id]

    def _accept(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(connection,), name="emulated transfer", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
                    write = msgspec.msgpack.decode(_receive(connection, length), type=_Write)
                    pieces = [_receive(connection, length) for length in write.lengths]
                    connection.sendall(_LENGTH.pack(self._take(write, pieces) + 1))
            except ConnectionError:
                return

    def _take(self, write: _Write, pieces: list[bytes]) -> int:
        if write.store_url != self._store_url or not all(map(self._is_registered, write.addresses, write.lengths)):
            return REFUSED
        for address, piece in zip(write.addresses, pieces, strict=True):
            ctypes.memmove(_on_host(address), piece, len(piece))
        return DONE

    def _is_registered(self, address: int, length: int) -> bool:
        return any(
            region.begin <= address and address + length <= region.begin + region.length
            for region in self._regions.values()
        )


def _on_host(address: int) -> int:
    """Where the host reaches memory, of the device or its own."""
    for begin, length, host in native().address_ranges():
        if begin <= address < begin + length:
            return host + address - begin
    return address


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)) + message)


def _receive(connection: socket.socket, length: int) -> bytes:
    """Raises ConnectionError if the other end leaves before."""
    received = bytearray()
    while len(received) < length:
        piece = connection.recv(min(length - len(received), 1 << 20))
        if not piece:
            raise ConnectionError("the other end of a transfer has left")
        received += piece
    return bytes(received)
