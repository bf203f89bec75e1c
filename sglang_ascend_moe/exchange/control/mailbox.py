"""Blocks between the ranks of an open exchange, through the mailboxes in the windows."""

from __future__ import annotations

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import AnyBlock, decode, encode
from sglang_ascend_moe.native.codes import InputError
from sglang_ascend_moe.native.session import NativeSession


def gather_blocks(
    session: NativeSession, block: AnyBlock, *, tokens: int, error: InputError = InputError.OK, detail: int = 0
) -> list[AnyBlock]:
    """Gives `block` to every rank and returns everyone's, by rank.

    An `error` of any rank is raised as `InvalidInput` on every rank. Raises `ProtocolMismatch` for a block of another
    session, version or sender.
    """
    encoded = session.plan(encode(block), tokens, error, detail)
    blocks = [decode(data, type(block), block.session) for data in encoded]
    for rank, received in enumerate(blocks):
        if received.rank != rank:
            raise ProtocolMismatch(f"the mailbox of rank {rank} holds a block of rank {received.rank}")
    return blocks
