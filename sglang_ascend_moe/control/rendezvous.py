"""Bring-up: ranks compare what they were asked for (`agree`), before `handover` exchanges their windows.

What is compared travels over the caller's torch.distributed group, which has to move CPU tensors.
"""

from __future__ import annotations

import struct
from collections import Counter
from datetime import timedelta
from fractions import Fraction

import torch
import torch.distributed as dist

from sglang_ascend_moe.control.blocks import Hello, decode, encode
from sglang_ascend_moe.errors import InvalidInput, PeerLost, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.windows.layout import ExchangeParameters

BRING_UP_TIMEOUT_S = 300.0
"""How long a rank waits for the others to call create: they may still be loading a model."""

_HELLO_BYTES = 1 << 15
_LENGTH = struct.Struct("<I")


def agree(group: dist.ProcessGroup, hello: Hello) -> list[Hello]:
    """Gathers everyone's `Hello`, by rank, and refuses together what does not fit.

    Raises on every rank: `InvalidInput` for a group that cannot move CPU tensors, `ProtocolMismatch` naming both values
    if two ranks differ, `PeerTimeout` or `PeerLost` if a rank does not come.
    """
    backend = dist.get_backend(group)
    if "gloo" not in backend:
        raise InvalidInput(f"group has backend {backend!r}, which moves no CPU tensors; pass a gloo group")
    frames = gather_frames(group, encode(hello), _HELLO_BYTES, BRING_UP_TIMEOUT_S, "called Exchange.create")
    hellos = [decode(frame, Hello) for frame in frames]
    _refuse_differences(hellos)
    return hellos


def workers_of(hellos: list[Hello]) -> list[int]:
    """Threads with which each rank moves large payloads: what it asked for, or its share of the cores, at least 1.

    A core that several ranks may use counts for each of them as the equal part of it.
    """
    users = Counter(core for hello in hellos for core in set(hello.cores))
    shares = [sum(Fraction(1, users[core]) for core in set(hello.cores)) for hello in hellos]
    return [hello.workers or max(1, int(share)) for hello, share in zip(hellos, shares, strict=True)]


def gather_frames(group: dist.ProcessGroup, data: bytes, room: int, timeout_s: float, call: str) -> list[bytes]:
    """Everyone's `data`, by rank; `room` is the same on all ranks and no rank has more bytes than that.

    Raises `PeerTimeout` or `PeerLost`, saying that not every rank `call`, if a rank does not come.
    """
    own = torch.frombuffer(
        bytearray((_LENGTH.pack(len(data)) + data).ljust(_LENGTH.size + room, b"\0")), dtype=torch.uint8
    )
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    try:
        dist.all_gather(gathered, own, group=group, async_op=True).wait(timedelta(seconds=timeout_s))
    except RuntimeError as error:
        kind = PeerTimeout if "imed out" in str(error) else PeerLost
        raise kind(f"not every rank {call}: {error}") from error
    return [_unframed(tensor.numpy().tobytes()) for tensor in gathered]


def _unframed(frame: bytes) -> bytes:
    (length,) = _LENGTH.unpack_from(frame)
    return frame[_LENGTH.size : _LENGTH.size + length]


def _refuse_differences(hellos: list[Hello]) -> None:
    first = hellos[0]
    for other in hellos:
        if other.layout_version != first.layout_version:
            raise ProtocolMismatch(
                f"window layouts differ: rank {first.rank} has version {first.layout_version}, rank {other.rank} "
                f"version {other.layout_version}; install the same version of sglang-ascend-moe everywhere"
            )
        for name in ExchangeParameters.__struct_fields__:
            one, another = getattr(first.parameters, name), getattr(other.parameters, name)
            if one != another:
                raise ProtocolMismatch(
                    f"{name} differs between ranks: rank {first.rank} has {one!r}, rank {other.rank} has {another!r}; "
                    f"give every rank the same options"
                )
