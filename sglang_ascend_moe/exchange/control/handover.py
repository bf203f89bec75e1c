"""Bring-up on one host: ranks hand each other their windows as file descriptors.

The descriptors travel through unix sockets in the abstract namespace, only between processes of the same user whose
process ids are those of the ranks, and which know the session. The kernel vouches for user and process id to both.
Such sockets do not reach into another network namespace: from there windows are opened in /proc.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from contextlib import ExitStack
from typing import NamedTuple

import msgspec
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerLost, PeerTimeout, ProtocolMismatch, Unsupported
from sglang_ascend_moe.exchange.control.blocks import Hello, WindowHandle, decode, encode
from sglang_ascend_moe.exchange.control.rendezvous import BRING_UP, gather_frames
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.control.waiting import Patience

_HANDLE_BYTES = 4096
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class Offer(NamedTuple):
    """What a rank hands to every peer."""

    handle: WindowHandle
    window: int
    """File descriptor."""


class _Deadline(NamedTuple):
    """A time of `time.monotonic`, and where it comes from."""

    at: float
    patience: Patience


def open_listener() -> socket.socket:
    """A listening socket in the abstract namespace; `getsockname()` is the address for `Hello`."""
    listener = _new_socket()
    listener.bind(b"\0ascend-moe-" + secrets.token_hex(12).encode())
    listener.listen(1024)
    return listener


def watch_processes(hellos: list[Hello], rank: int, ranks: int) -> list[int]:
    """Opens a pidfd of every peer in `hellos`, which becomes readable when its process ends. [ranks], -1 elsewhere.

    The caller closes them. Raises `PeerLost` for a process that is not there.
    """
    with ExitStack() as opened:
        pidfds = [-1] * ranks
        for hello in hellos:
            if hello.rank == rank:
                continue
            try:
                pidfds[hello.rank] = os.pidfd_open(hello.process)
            except ProcessLookupError as error:
                raise PeerLost(
                    f"rank {hello.rank} (process {hello.process}) has ended, or runs in another PID namespace; "
                    f"ranks on one host must share one",
                    hello.rank,
                ) from error
            opened.callback(os.close, pidfds[hello.rank])
        opened.pop_all()
        return pidfds


def exchange_windows(
    hellos: list[Hello], offer: Offer, listener: socket.socket, pidfds: list[int], patience: Patience = BRING_UP
) -> list[int]:
    """Hands `offer` to every peer and returns the descriptors of their windows, -1 for the own rank.

    Each rank calls at the ranks below it and is called by those above it. Strangers are turned away. Raises `PeerLost`,
    `PeerTimeout` and `ProtocolMismatch`; no descriptor is left open then.
    """
    rank = offer.handle.rank
    deadline = _Deadline(time.monotonic() + patience.seconds, patience)
    windows = [-1] * len(hellos)
    with ExitStack() as sockets, ExitStack() as received:
        calls = {}
        for below in range(rank):
            calls[below] = sockets.enter_context(_new_socket())
            _call(calls[below], hellos[below])
            _require_process(calls[below], hellos[below])
            _send(calls[below], offer, below)
        waiting = set(range(rank + 1, len(hellos)))
        while waiting:
            _wait(listener, waiting, pidfds, deadline)
            caller = listener.accept()[0]
            peer = _identify(caller, hellos, waiting)
            if peer is None:
                caller.close()
                continue
            sockets.enter_context(caller)
            windows[peer] = _receive(caller, peer, offer.handle, pidfds, deadline, received)
            _send(caller, offer, peer)
            waiting.remove(peer)
        for below, call in calls.items():
            windows[below] = _receive(call, below, offer.handle, pidfds, deadline, received)
        received.pop_all()
    return windows


def open_windows(
    group: dist.ProcessGroup, hellos: list[Hello], offer: Offer, secret: Secret | None, patience: Patience
) -> list[int]:
    """As `exchange_windows`, where sockets do not reach all ranks: each opens the windows of the others in /proc.

    Only processes of the same user that may debug each other can. Raises `PeerLost`, `PeerTimeout`, `ProtocolMismatch`
    and `Unsupported`.
    """
    own = msgspec.structs.replace(offer.handle, descriptor=offer.window)
    frames = gather_frames(group, encode(own), _HANDLE_BYTES, patience, "offered its window", secret)
    windows = [-1] * len(hellos)
    with ExitStack() as opened:
        for hello, frame in zip(hellos, frames, strict=True):
            handle = decode(frame, WindowHandle, own.session)
            _require_window(handle, hello.rank, own)
            if hello.rank == own.rank:
                continue
            path = f"/proc/{hello.process}/fd/{handle.descriptor}"
            try:
                windows[hello.rank] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise PeerLost(f"rank {hello.rank} ended before its window was opened ({error})", hello.rank) from error
            except OSError as error:
                raise Unsupported(
                    f"the window of rank {hello.rank}, in another network namespace, cannot be opened ({error}); run"
                    " all ranks as one user that may debug its processes (ptrace), or in one network namespace"
                ) from error
            opened.callback(os.close, windows[hello.rank])
        # Until then every rank keeps the descriptor that it named.
        gather_frames(group, b"", 0, patience, "opened the windows of others", secret)
        opened.pop_all()
    return windows


def _require_window(handle: WindowHandle, rank: int, own: WindowHandle) -> None:
    """Raise `ProtocolMismatch` if this is not a window of `rank` that fits the own one."""
    if (handle.rank, handle.total_bytes, handle.layout_digest) != (rank, own.total_bytes, own.layout_digest):
        raise ProtocolMismatch(f"rank {rank} handed over the window of another exchange: {handle}")


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def _identify(caller: socket.socket, hellos: list[Hello], waiting: set[int]) -> int | None:
    """The awaited rank that runs in the caller's process, by the kernel's word; None for a stranger."""
    process, user = _process_and_user(caller)
    if user != os.geteuid():
        return None
    return next((rank for rank in sorted(waiting) if hellos[rank].process == process), None)


def _require_process(call: socket.socket, hello: Hello) -> None:
    """Raise `ProtocolMismatch` if somebody else listens at the address that a rank named."""
    process, user = _process_and_user(call)
    if (process, user) != (hello.process, os.geteuid()):
        raise ProtocolMismatch(
            f"process {process} of user {user} listens where rank {hello.rank} (process {hello.process}) said it would"
        )


def _process_and_user(peer: socket.socket) -> tuple[int, int]:
    """Of the process that connected, or that listens, by the kernel's word."""
    process, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return process, user


def _call(call: socket.socket, hello: Hello) -> None:
    try:
        call.connect(hello.address)
    except OSError as error:
        raise PeerLost(f"rank {hello.rank} ended before it handed over its window ({error})", hello.rank) from error


def _send(peer: socket.socket, offer: Offer, rank: int) -> None:
    try:
        socket.send_fds(peer, [encode(offer.handle)], [offer.window])
    except OSError as error:
        raise PeerLost(f"rank {rank} ended before it took our window ({error})", rank) from error


def _wait(source: socket.socket, ranks: set[int], pidfds: list[int], deadline: _Deadline) -> None:
    """Waits until `source` is readable, as long as all of `ranks` live."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    for rank in ranks:
        poll.register(pidfds[rank], select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline.at - time.monotonic()) * 1000)}
    if source.fileno() in ready:
        return
    for rank in ranks:
        if pidfds[rank] in ready:
            raise PeerLost(f"rank {rank} has died while windows were handed over", rank)
    late = ", ".join(map(str, sorted(ranks)))
    seconds, set_by = deadline.patience
    raise PeerTimeout(f"ranks {late} did not hand over their windows within {seconds:g} s ({set_by})", min(ranks))


def _receive(
    peer: socket.socket, rank: int, own: WindowHandle, pidfds: list[int], deadline: _Deadline, received: ExitStack
) -> int:
    _wait(peer, {rank}, pidfds, deadline)
    data, descriptors, _, _ = socket.recv_fds(peer, _HANDLE_BYTES, 1)
    for descriptor in descriptors:
        received.callback(os.close, descriptor)
    if not descriptors:
        raise PeerLost(f"rank {rank} hung up instead of handing over its window", rank)
    _require_window(decode(data, WindowHandle, own.session), rank, own)
    return descriptors[0]
