"""The exception family. Every error this package raises on purpose derives from `AscendMoeError`.

docs/codes.md is written from this module.
"""

from collections.abc import Sequence
from typing import ClassVar


class AscendMoeError(Exception):
    """Base of all errors of this package.

    code: what programs compare; it stays, while messages are for people.
    keeps_exchange: whether an exchange that raised it can be used afterwards; else open a new one.
    """

    code: ClassVar[str] = "ASCEND_MOE_ERROR"
    keeps_exchange: ClassVar[bool] = False


class InvalidInput(AscendMoeError):
    """An argument is wrong: a dtype, a shape, an expert id, too many tokens.

    Inside an exchange it is raised on every rank.
    """

    code = "INVALID_INPUT"
    keeps_exchange = True


class WindowTooSmall(AscendMoeError):
    """The rows do not fit the window in one round. Raised on every rank."""

    code = "WINDOW_TOO_SMALL"
    keeps_exchange = True


class ProtocolMismatch(AscendMoeError):
    """Ranks disagree: on options, layout, version or session, or on what to do next."""

    code = "PROTOCOL_MISMATCH"
    keeps_exchange = True


class PeerFault(AscendMoeError):
    """A peer is to blame: `rank` is its rank, `step` and `epoch` say where it was missed (None: at bring-up)."""

    code = "PEER_FAULT"

    def __init__(self, message: str, rank: int | None = None, step: str | None = None, epoch: int | None = None):
        super().__init__(message, rank, step, epoch)
        self.rank = rank
        self.step = step
        self.epoch = epoch

    def __str__(self) -> str:
        return str(self.args[0])


class PeerLost(PeerFault):
    """A peer's process has ended, or it closed the exchange or failed while others needed it."""

    code = "PEER_LOST"


class PeerTimeout(PeerFault):
    """A peer did not do its part before the deadline."""

    code = "PEER_TIMEOUT"


class SessionPoisoned(AscendMoeError):
    """The exchange was used after a failure, after it was closed, or in a forked process."""

    code = "SESSION_POISONED"


class CaptureRefused(AscendMoeError):
    """A step cannot be captured into a device graph without becoming wrong."""

    code = "CAPTURE_REFUSED"
    keeps_exchange = True


class Corruption(AscendMoeError):
    """Data in a window is not what its writer put there.

    region: of the window; rank: the writer; value: what was found, or the number of the row whose checksum differs.
    None where a window as a whole is not what it should be.
    """

    code = "CORRUPTION"

    def __init__(
        self, message: str, region: str | None = None, rank: int | None = None, value: int | None = None
    ) -> None:
        super().__init__(message, region, rank, value)
        self.region = region
        self.rank = rank
        self.value = value

    def __str__(self) -> str:
        return str(self.args[0])


class Unsupported(AscendMoeError):
    """A known feature that this version or this machine does not offer."""

    code = "UNSUPPORTED"
    keeps_exchange = True


def rank_in_words(rank: int, nodes: Sequence[int]) -> str:
    """How messages name a rank: `rank 3`, or `rank 3 (node 1)` where `nodes` [ranks] are several."""
    return f"rank {rank} (node {nodes[rank]})" if len(set(nodes)) > 1 else f"rank {rank}"


def code_of(error: BaseException) -> str:
    """The code of an exception; empty if it is not of this package."""
    return error.code if isinstance(error, AscendMoeError) else ""
