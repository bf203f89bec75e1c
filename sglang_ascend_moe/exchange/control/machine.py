"""On which machine a process runs, as far as ranks have to know: whose processes and whose sockets they can reach."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

IDENTITY_BYTES = 16
_BOOT = Path("/proc/sys/kernel/random/boot_id")


Identity = Annotated[bytes, Meta(min_length=IDENTITY_BYTES, max_length=IDENTITY_BYTES)]


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a process runs.

    identity: the same for processes that see each other's numbers: one machine since its start, and one PID namespace
    of it. network: the same for processes that reach each other's sockets without a network. name: for messages.
    """

    identity: Identity
    network: Identity
    name: Annotated[str, Meta(max_length=256)]


def this_machine() -> Machine:
    """Where the calling process runs."""
    boot = _BOOT.read_bytes()
    return Machine(
        _digest(boot, os.readlink("/proc/self/ns/pid").encode()),
        _digest(boot, os.readlink("/proc/self/ns/net").encode()),
        socket.gethostname(),
    )


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=IDENTITY_BYTES).digest()
