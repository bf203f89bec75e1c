"""Control traffic that proves who sent it: seals (HMAC-SHA256) under a secret that all ranks and instances share.

A seal covers what the block is for, who sends it, and challenges that its receivers have just drawn, so that neither a
forged block nor one of another session, sender, direction or time is taken for a good one. This module needs neither
torch nor SGLang.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch

MIN_SECRET_BYTES = 32
MAX_SECRET_BYTES = 1 << 16
CHALLENGE_BYTES = 32
SEAL_BYTES = 32
NO_SEAL = bytes(SEAL_BYTES)
"""In place of a seal, from a sender without a secret."""

_NUMBER_BYTES = 8


class Secret:
    """A shared secret. Never printed."""

    def __init__(self, value: bytes) -> None:
        """Raises `InvalidInput` if `value` is too short."""
        if len(value) < MIN_SECRET_BYTES:
            raise InvalidInput(f"a secret of {len(value)} bytes: at least {MIN_SECRET_BYTES} are needed")
        self._value = value

    def seal(self, purpose: str, sender: int, challenges: Sequence[bytes], data: bytes) -> bytes:
        """The seal of `data`, which `sender` gives for `purpose` to those who drew `challenges`."""
        code = hmac.new(self._value, digestmod=hashlib.sha256)
        # Each part with its length in front, so that no two sequences of parts are one sequence of bytes.
        for part in (purpose.encode(), sender.to_bytes(_NUMBER_BYTES), *challenges, data):
            code.update(len(part).to_bytes(_NUMBER_BYTES) + part)
        return code.digest()


def draw_challenge() -> bytes:
    """Bytes that were never seen before."""
    return secrets.token_bytes(CHALLENGE_BYTES)


def require_seal(
    secret: Secret | None, seal: bytes, purpose: str, sender: int, challenges: Sequence[bytes], data: bytes, who: str
) -> None:
    """Raise `ProtocolMismatch`, naming the sender `who`, unless `seal` is what this process expects of it.

    Without a `secret` that is `NO_SEAL`: a sender that seals was given a secret, and so should this process have been.
    """
    if secret is None:
        if not hmac.compare_digest(seal, NO_SEAL):
            raise ProtocolMismatch(
                f"{who} seals its control blocks and this one has no secret; give --ascend-moe-secret-file to all"
            )
        return
    if hmac.compare_digest(seal, NO_SEAL):
        raise ProtocolMismatch(
            f"{who} does not seal its control blocks; give --ascend-moe-secret-file with the same secret to all"
        )
    if not hmac.compare_digest(seal, secret.seal(purpose, sender, challenges, data)):
        raise ProtocolMismatch(
            f"a control block of {who} has a wrong seal: it was forged or replayed, or --ascend-moe-secret-file holds"
            " another secret there"
        )


def read_secret(path: str | os.PathLike[str] | None) -> Secret | None:
    """The secret in the file at `path`, as it is, or None for no path.

    Raises `InvalidInput`, naming the flag, if it is no regular file of this user that others cannot read, or too short.
    """
    if path is None:
        return None
    flag = f"--ascend-moe-secret-file {str(path)!r}"
    try:
        descriptor = os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(f"{flag} cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInput(f"{flag} is no regular file")
        if found.st_uid != os.geteuid():
            raise InvalidInput(f"{flag} belongs to user {found.st_uid}, and this process runs as {os.geteuid()}")
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.S_IMODE(found.st_mode)
            raise InvalidInput(f"{flag} has mode {mode:04o}: others may use it; chmod 600 it")
        value = os.read(descriptor, MAX_SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
    if not MIN_SECRET_BYTES <= len(value) <= MAX_SECRET_BYTES:
        raise InvalidInput(
            f"{flag} has to hold {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes; `head -c 32 /dev/urandom`"
            " makes a secret"
        )
    return Secret(value)
