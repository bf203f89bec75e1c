"""The control blocks that launchers of several nodes send each other. Tagged, frozen, strict, like every block."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import MAX_BLOCK_BYTES, PROTOCOL_VERSION
from sglang_ascend_moe.exchange.control.machine import Machine
from sglang_ascend_moe.serving.launcher.process_reports import Finding, Report
from sglang_ascend_moe.windows.layout import MAX_RANKS

Node = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
Text = Annotated[str, Meta(max_length=4096)]


class NodeBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, kw_only=True):
    """What every block carries: the protocol's version, that of the package, and who sends it."""

    protocol: int = PROTOCOL_VERSION
    version: Text
    node: Node


class NodeHello(NodeBlock, frozen=True, kw_only=True):
    """How a node was started. Node 0 compares all of them.

    settings: what has to be the same on every node, by flag, as text.
    """

    nodes: Annotated[int, Meta(ge=1, le=MAX_RANKS)]
    machine: Machine
    device: Text
    settings: Annotated[dict[Text, Text], Meta(max_length=256)]


class NodeVerdict(NodeBlock, frozen=True, kw_only=True):
    """What node 0 has found. refusal: why the server does not start; empty if it does. server: a name for all of its
    processes."""

    refusal: Text
    server: Text


class NodeAccount(NodeBlock, frozen=True, kw_only=True):
    """A node ends, or is gone: what is known of its processes."""

    reports: Annotated[list[Report], Meta(max_length=4096)]
    findings: Annotated[list[Finding], Meta(max_length=4096)]


class NodeStops(NodeBlock, frozen=True, kw_only=True):
    """A node was stopped by who started it."""

    code: Annotated[int, Meta(ge=0, lt=256)]


class NodeLeaves(NodeBlock, frozen=True, kw_only=True):
    """All ranks of another node than 0 have ended as they should, as node 0 has told them to."""


class _Version(msgspec.Struct, frozen=True):
    """What blocks of any protocol begin with."""

    protocol: int
    version: str = "another version"
    node: int = -1


def encode(block: NodeBlock) -> bytes:
    return msgspec.msgpack.encode(block)


def decode(data: bytes, kind: Any, version: str, who: str) -> Any:
    """A block of `kind`, one of these classes or a union of them, from whoever runs this `version` of the package.

    Raises `ProtocolMismatch`, naming `who` and both versions, for everything that is not exactly that.
    """
    if len(data) > MAX_BLOCK_BYTES:
        raise ProtocolMismatch(f"{who} sent a block of {len(data)} bytes, which exceeds {MAX_BLOCK_BYTES}")
    try:
        said = msgspec.msgpack.decode(data, type=_Version)
        if (said.protocol, said.version) != (PROTOCOL_VERSION, version):
            raise ProtocolMismatch(
                f"node {said.node} ({who}) has sglang-ascend-moe {said.version} (protocol {said.protocol}), this node"
                f" {version} (protocol {PROTOCOL_VERSION}); install the same version on every node"
            )
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolMismatch(f"{who} sent what is no block of a node ({error})") from error
