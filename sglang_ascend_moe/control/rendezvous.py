"""Bring-up: ranks compare what they were asked for (`agree`), before `handover` exchanges their windows.

The comparison travels over the caller's torch.distributed group, which has to move CPU tensors.
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


def agree(group: dist.ProcessGroup, hello: Hello) -> list[Hello]:
    """Gathers everyone's `Hello`, by rank, and refuses together what does not fit.

    Raises on every rank: `InvalidInput` for a group that cannot move CPU tensors, `ProtocolMismatch` naming both values
    if two ranks differ, `PeerTimeout` or `PeerLost` if a rank does not come.
    """
    backend = dist.get_backend(group)
    if "gloo" not in backend:
        raise InvalidInput(f"group has backend {backend!r}, which moves no CPU tensors; pass a gloo group")
    own = torch.frombuffer(bytearray(_framed(encode(hello))), dtype=torch.uint8)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    try:
        dist.all_gather(gathered, own, group=group, async_op=True).wait(timedelta(seconds=BRING_UP_TIMEOUT_S))
    except RuntimeError as error:
        kind = PeerTimeout if "imed out" in str(error) else PeerLost
        raise kind(f"not every rank called Exchange.create: {error}") from error
    hellos = [decode(_unframed(tensor.numpy().tobytes()), Hello) for tensor in gathered]
    _refuse_differences(hellos)
    return hellos


def workers_of(hellos: list[Hello]) -> list[int]:
    """Threads with which each rank moves large payloads: what it asked for, or its share of the cores, at least 1.

    A core that several ranks may use counts for each of them as the equal part of it.
    """
    users = Counter(core for hello in hellos for core in set(hello.cores))
    shares = [sum(Fraction(1, users[core]) for core in set(hello.cores)) for hello in hellos]
    return [hello.workers or max(1, int(share)) for hello, share in zip(hellos, shares, strict=True)]


def _framed(data: bytes) -> bytes:
    return (struct.pack("<I", len(data)) + data).ljust(_HELLO_BYTES, b"\0")


def _unframed(data: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", data)
    return data[4 : 4 + length]


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
