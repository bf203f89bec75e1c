"""Control blocks: the msgpack messages of bring-up, of the prefill plan and of the placement of experts.

Tagged, frozen, strict: unknown fields, wrong types, foreign sessions and oversized blocks are refused. Decode steps
carry no block. This module needs neither torch nor SGLang.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.machine import Machine
from sglang_ascend_moe.windows.layout import MAX_PLAN_CHUNKS, MAX_RANKS, ExchangeParameters

PROTOCOL_VERSION = 2
MAX_BLOCK_BYTES = 1 << 20
MAX_LAYERS = 1024
MAX_EXPERTS = 1 << 16

SessionId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Rank = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
Count = Annotated[int, Meta(ge=0, lt=2**32)]
Expert = Annotated[int, Meta(ge=0, lt=MAX_EXPERTS)]


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, kw_only=True):
    """What every block carries: the protocol's version and the session it belongs to."""

    protocol: int = PROTOCOL_VERSION
    session: SessionId
    rank: Rank


class Hello(Block, frozen=True, kw_only=True):
    """Who a rank is and what it was asked for. Every rank compares all of them.

    `session` is a proposal; rank 0's is taken. `process` is the rank's process id; `address` names the socket, in the
    abstract namespace, at which it hands out its window. `cores` are those that the process may use, `workers` the
    threads that were asked for (0: a share of the cores). `node`: as in `RankOptions`.
    """

    layout_version: int
    parameters: ExchangeParameters
    process: Annotated[int, Meta(ge=1, lt=2**31)]
    address: Annotated[bytes, Meta(max_length=64)]
    cores: Annotated[list[Count], Meta(max_length=4096)]
    workers: Annotated[int, Meta(ge=0, le=256)]
    node: Annotated[int, Meta(ge=0, lt=MAX_RANKS)] | None
    machine: Machine


class WindowHandle(Block, frozen=True, kw_only=True):
    """Goes with the descriptor of the sender's window, or says which of its process's descriptors it is."""

    total_bytes: Annotated[int, Meta(ge=0)]
    layout_digest: Annotated[bytes, Meta(min_length=16, max_length=16)]
    descriptor: Annotated[int, Meta(ge=-1, lt=2**31)] = -1


class Reachable(Block, frozen=True, kw_only=True):
    """Where ranks of other nodes call the sender."""

    host: Annotated[str, Meta(max_length=256)]
    port: Annotated[int, Meta(ge=1, lt=2**16)]


class Greeting(Block, frozen=True, kw_only=True):
    """The first words over a connection between two ranks; `seal` covers purpose, rank and session."""

    purpose: Annotated[str, Meta(max_length=64)]
    seal: Annotated[bytes, Meta(max_length=32)]


class PrefillPlan(Block, frozen=True, kw_only=True):
    """What a rank brings to a prefill call: rows that each chunk of its tokens sends to each rank.

    All chunks but a rank's last have `chunk_tokens` tokens; rows is [chunks][ranks].
    """

    tokens: Count
    chunk_tokens: Annotated[int, Meta(ge=1, lt=2**32)]
    rows: Annotated[list[Annotated[list[Count], Meta(max_length=MAX_RANKS)]], Meta(max_length=MAX_PLAN_CHUNKS)]


class ExpertPlacement(Block, frozen=True, kw_only=True):
    """Which expert each place holds. Every rank compares all of them before a layer runs with it.

    `change` counts the agreements of a session: 0 at start-up. `epochs` are the exchanges begun so far by each exchange
    of the rank. `layers`: layer -> logical expert (as the router knows it) of each physical one (as the exchange knows
    it), every rank holding an equal part in the order of ranks; only the layers that change.
    """

    change: Count
    epochs: Annotated[list[Annotated[int, Meta(ge=0, lt=2**48)]], Meta(max_length=MAX_LAYERS)]
    logical_experts: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    layers: Annotated[
        dict[Annotated[int, Meta(ge=0, lt=MAX_LAYERS)], Annotated[list[Expert], Meta(max_length=MAX_EXPERTS)]],
        Meta(max_length=MAX_LAYERS),
    ]


AnyBlock = TypeVar("AnyBlock", bound=Block)


def encode(block: Block) -> bytes:
    return msgspec.msgpack.encode(block)


def decode(data: bytes, kind: type[AnyBlock], session: bytes | None = None) -> AnyBlock:
    """Decodes a block of `kind`, of `session` where one is given.

    Raises `ProtocolMismatch`, naming both values, for everything that is not exactly that.
    """
    if len(data) > MAX_BLOCK_BYTES:
        raise ProtocolMismatch(f"a control block of {len(data)} bytes exceeds {MAX_BLOCK_BYTES}")
    try:
        block = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolMismatch(f"not a {kind.__name__} block of protocol {PROTOCOL_VERSION}: {error}") from error
    if block.protocol != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"rank {block.rank} speaks protocol {block.protocol}, this rank protocol {PROTOCOL_VERSION}; "
            f"install the same version of sglang-ascend-moe everywhere"
        )
    if session is not None and block.session != session:
        raise ProtocolMismatch(
            f"rank {block.rank} belongs to session {block.session.hex()}, this rank to session {session.hex()}"
        )
    return block
