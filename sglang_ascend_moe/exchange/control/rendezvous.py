"""Bring-up: ranks compare what they were asked for (`agree`), before `handover` exchanges their windows.

What is compared travels over the caller's torch.distributed group, which has to move CPU tensors, and may be a network.
"""

from __future__ import annotations

import struct

import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import Hello, decode, encode
from sglang_ascend_moe.exchange.control.secret import NO_SEAL, SEAL_BYTES, Secret, draw_challenge, require_seal
from sglang_ascend_moe.exchange.control.waiting import Patience, wait_for_ranks
from sglang_ascend_moe.windows.layout import ExchangeParameters

BRING_UP = Patience(300.0, "bring_up_timeout_s; of a server --ascend-moe-bring-up-timeout")
"""How long a rank waits for the others to open an exchange: they may still be loading a model."""

_HELLO_BYTES = 1 << 15
_LENGTH = struct.Struct("<I")


def agree(
    group: dist.ProcessGroup, hello: Hello, secret: Secret | None = None, patience: Patience = BRING_UP
) -> list[Hello]:
    """Gathers everyone's `Hello`, by rank, and refuses together what does not fit.

    Raises on every rank: `InvalidInput` for a group that cannot move CPU tensors, `ProtocolMismatch` naming both values
    if two ranks differ, or if a seal is wrong, `PeerTimeout` or `PeerLost` if a rank does not come.
    """
    backend = dist.get_backend(group)
    if "gloo" not in backend:
        raise InvalidInput(f"group has backend {backend!r}, which moves no CPU tensors; pass a gloo group")
    frames = gather_frames(group, encode(hello), _HELLO_BYTES, patience, "opened the exchange", secret)
    hellos = [decode(frame, Hello) for frame in frames]
    for rank, received in enumerate(hellos):
        if received.rank != rank:
            raise ProtocolMismatch(f"rank {rank} says that it is rank {received.rank}")
    refuse_different_options(hellos)
    return hellos


def gather_frames(
    group: dist.ProcessGroup, data: bytes, room: int, patience: Patience, call: str, secret: Secret | None = None
) -> list[bytes]:
    """Everyone's `data`, by rank; `room` is the same on all ranks and no rank has more bytes than that.

    With a `secret` every rank seals what it sends, and all challenges that were drawn for it; without, it says so.

    Raises `PeerTimeout` or `PeerLost`, naming ranks that have not `call`, if a rank does not come; `ProtocolMismatch`
    naming a rank whose seal or length is not right.
    """
    challenges = _gather(group, draw_challenge(), patience, call)
    own_rank = dist.get_rank(group)
    seal = secret.seal(call, own_rank, challenges, data) if secret else NO_SEAL
    frame = (_LENGTH.pack(len(data)) + seal + data).ljust(_LENGTH.size + SEAL_BYTES + room, b"\0")
    received = []
    for rank, peer_frame in enumerate(_gather(group, frame, patience, call)):
        peer_seal, peer_data = _unframed(peer_frame, rank)
        require_seal(secret, peer_seal, call, rank, challenges, peer_data, f"rank {rank}")
        received.append(peer_data)
    return received


def _gather(group: dist.ProcessGroup, data: bytes, patience: Patience, call: str) -> list[bytes]:
    """Everyone's `data`, which is as long on every rank."""
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    wait_for_ranks(lambda: dist.all_gather(gathered, own, group=group, async_op=True), group, call, patience)
    return [tensor.numpy().tobytes() for tensor in gathered]


def _unframed(frame: bytes, rank: int) -> tuple[bytes, bytes]:
    """Seal and data of a frame. Raises `ProtocolMismatch` for a length that exceeds it."""
    (length,) = _LENGTH.unpack_from(frame)
    begin = _LENGTH.size + SEAL_BYTES
    if length > len(frame) - begin:
        raise ProtocolMismatch(f"rank {rank} announces {length} bytes in a frame of {len(frame) - begin}")
    return frame[_LENGTH.size : begin], frame[begin : begin + length]


def refuse_different_options(hellos: list[Hello]) -> None:
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
