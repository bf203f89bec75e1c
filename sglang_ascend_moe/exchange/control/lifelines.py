"""Connections between ranks of different nodes. A lifeline carries nothing: it is there to end with the other rank.

What ends with a process of the own node is a process descriptor. To the kernels both are descriptors that become
readable when a rank is gone.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from weakref import WeakSet

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_process_group_store

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, PeerLost, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import Greeting, Hello, Reachable, decode, encode
from sglang_ascend_moe.exchange.control.handover import watch_processes
from sglang_ascend_moe.exchange.control.network import (
    Address,
    Incoming,
    address_of,
    call,
    end_when_silent,
    framed,
    hang_up,
    listen,
    own_host,
)
from sglang_ascend_moe.exchange.control.rendezvous import gather_frames
from sglang_ascend_moe.exchange.control.secret import NO_SEAL, Secret, require_seal
from sglang_ascend_moe.exchange.control.waiting import Patience

LIFELINE = "lifeline"
_ADDRESS_BYTES = 512

# A forked child would keep connections of its parent from ending.
_connections: WeakSet[socket.socket] = WeakSet()


def _close_in_child() -> None:
    for connection in list(_connections):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


def nodes_of(hellos: Sequence[Hello]) -> list[int]:
    """The node of each rank: as ranks were told, else machines in the order of their ranks."""
    if all(hello.node is not None for hello in hellos):
        return [hello.node or 0 for hello in hellos]
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(hello.machine.identity, len(numbers)) for hello in hellos]


def ended(ends: Sequence[int]) -> list[int]:
    """The ranks whose descriptor of `ends` [ranks] is readable; -1 for one that is not watched."""
    poll = select.poll()
    for end in ends:
        if end >= 0:
            poll.register(end, select.POLLIN)
    readable = {descriptor for descriptor, _ in poll.poll(0)}
    return [rank for rank, end in enumerate(ends) if end in readable]


class RankWatch:
    """Which ranks are gone.

    nodes: [ranks] where each runs. ends: [ranks] descriptors that become readable when a rank is gone, -1 for this one.
    """

    def __init__(self, nodes: list[int], ends: list[int], resources: ExitStack) -> None:
        """Use `watch_ranks`."""
        self.nodes = nodes
        self.ends = ends
        self._resources = resources

    def gone(self) -> list[int]:
        """The ranks whose process has ended, or whose machine is silent."""
        return ended(self.ends)

    def close(self) -> None:
        """Nobody is watched any more, and ranks of other nodes see this one as gone."""
        self.ends = [-1] * len(self.ends)
        self._resources.close()


def watch_ranks(
    group: dist.ProcessGroup, hellos: list[Hello], rank: int, timeout_s: float, secret: Secret | None,
    patience: Patience,
) -> RankWatch:  # fmt: skip
    """A rank of another node counts as gone when its machine has been silent for `timeout_s`.

    Raises `PeerLost`, `PeerTimeout` or `InvalidInput`.
    """
    own, nodes = hellos[rank], nodes_of(hellos)
    near = [peer for peer in hellos if (peer.machine.identity, peer.node) == (own.machine.identity, own.node)]
    with ExitStack() as opened:
        ends = watch_processes(near, rank, len(hellos))
        for descriptor in ends:
            if descriptor >= 0:
                opened.callback(os.close, descriptor)
        if len(set(nodes)) > 1:
            far = {peer.rank for peer in hellos} - {peer.rank for peer in near}
            connected = connect_ranks(group, hellos[0].session, rank, far, LIFELINE, secret, patience)
            for peer, connection in connected.items():
                opened.callback(hang_up, connection)
                end_when_silent(connection, timeout_s)
                ends[peer] = connection.fileno()
        return RankWatch(nodes, ends, opened.pop_all())


def meeting_place(group: dist.ProcessGroup) -> Address:
    """Where the ranks of `group` have met: the address of torch's store.

    Raises `InvalidInput` for a store that has none.
    """
    store = _get_process_group_store(group)
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if not isinstance(store, dist.TCPStore):
        raise InvalidInput(
            f"ranks on several nodes have met in a {type(store).__name__}, which has no address; initialise"
            " torch.distributed with an address of rank 0 (tcp://HOST:PORT, --dist-init-addr)"
        )
    return Address(store.host, store.port)


def connect_ranks(
    group: dist.ProcessGroup, session: bytes, rank: int, peers: Collection[int], purpose: str, secret: Secret | None,
    patience: Patience,
) -> dict[int, socket.socket]:  # fmt: skip
    """A connection to each of `peers`, which name this rank among theirs; every rank of `group` calls it.

    Each rank calls at those below it and is called by those above it, at the address of its machine from which it
    reaches the meeting place. Strangers are turned away. Raises `PeerLost`, `PeerTimeout` or `InvalidInput`.
    """
    until = time.monotonic() + patience.seconds
    with ExitStack() as opened, listen(Address(own_host(meeting_place(group)), 0)) as listener:
        own = address_of(listener)
        reachable = encode(Reachable(session=session, rank=rank, host=own.host, port=own.port))
        frames = gather_frames(group, reachable, _ADDRESS_BYTES, patience, "told where it is reached", secret)
        places = [decode(frame, Reachable, session) for frame in frames]
        greeting = framed(_greeting(session, rank, purpose, secret))
        connected: dict[int, socket.socket] = {}
        for peer in sorted(below for below in peers if below < rank):
            at = Address(places[peer].host, places[peer].port)
            try:
                connected[peer] = opened.enter_context(call(at, until))
                connected[peer].sendall(greeting)
            except (PeerTimeout, OSError) as error:
                raise PeerLost(f"rank {peer} cannot be reached at {at}: {error}", peer) from error
        connected |= _called(listener, {above for above in peers if above > rank}, session, purpose, secret, until)
        for peer, connection in connected.items():
            opened.enter_context(connection)
            who = f"rank {peer}"
            if peer > rank:
                connection.sendall(greeting)
            else:
                _require_greeting(Incoming(connection).receive(until, who), session, peer, purpose, secret)
        _connections.update(connected.values())
        opened.pop_all()
        return connected


def _called(
    listener: socket.socket, waiting: set[int], session: bytes, purpose: str, secret: Secret | None, until: float
) -> dict[int, socket.socket]:
    """The connections of those ranks of `waiting` that call."""
    connected: dict[int, socket.socket] = {}
    strangers: dict[int, tuple[socket.socket, Incoming]] = {}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    try:
        while missing := waiting - connected.keys():
            ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            if not ready:
                named = ", ".join(map(str, sorted(missing)))
                raise PeerTimeout(f"ranks {named} have not called at {address_of(listener)}", min(missing))
            for descriptor, _ in ready:
                if descriptor == listener.fileno():
                    caller = listener.accept()[0]
                    strangers[caller.fileno()] = caller, Incoming(caller)
                    poll.register(caller, select.POLLIN)
                    continue
                caller, incoming = strangers[descriptor]
                try:
                    frame = incoming.take()
                    if frame is None:
                        continue
                    peer = _require_greeting(frame, session, None, purpose, secret)
                except (AscendMoeError, EOFError, OSError):
                    peer = -1
                poll.unregister(descriptor)
                del strangers[descriptor]
                if peer in missing and peer not in connected:
                    connected[peer] = caller
                else:
                    caller.close()
    except PeerTimeout:
        for connection in connected.values():
            connection.close()
        raise
    finally:
        for caller, _ in strangers.values():
            caller.close()
    return connected


def _greeting(session: bytes, rank: int, purpose: str, secret: Secret | None) -> bytes:
    seal = secret.seal(purpose, rank, [session], b"") if secret else NO_SEAL
    return encode(Greeting(session=session, rank=rank, purpose=purpose, seal=seal))


def _require_greeting(frame: bytes, session: bytes, rank: int | None, purpose: str, secret: Secret | None) -> int:
    """The rank that greets. Raises `ProtocolMismatch` if it is not `rank`, or for another purpose."""
    greeting = decode(frame, Greeting, session)
    if greeting.purpose != purpose or rank not in (None, greeting.rank):
        raise ProtocolMismatch(
            f"rank {greeting.rank} calls for {greeting.purpose}, where {purpose} of rank {rank} is expected"
        )
    require_seal(secret, greeting.seal, purpose, greeting.rank, [session], b"", f"rank {greeting.rank}")
    return greeting.rank
