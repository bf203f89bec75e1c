"""The exception family. Every error this package raises on purpose derives from `AscendMoeError`."""


class AscendMoeError(Exception):
    """Base of all errors of this package."""


class InvalidInput(AscendMoeError):
    """An argument is wrong: a dtype, a shape, an expert id, too many tokens.

    Inside an exchange it is raised on every rank, and the exchange stays usable.
    """


class WindowTooSmall(AscendMoeError):
    """The rows do not fit the window in one round. Raised on every rank; the exchange stays usable."""


class ProtocolMismatch(AscendMoeError):
    """Ranks disagree: on options, layout, version or session, or on what to do next."""


class PeerFault(AscendMoeError):
    """A peer is to blame: `rank` is its rank, `step` and `epoch` say where it was missed (None: at bring-up)."""

    def __init__(self, message: str, rank: int | None = None, step: str | None = None, epoch: int | None = None):
        super().__init__(message, rank, step, epoch)
        self.rank = rank
        self.step = step
        self.epoch = epoch

    def __str__(self) -> str:
        return str(self.args[0])


class PeerLost(PeerFault):
    """A peer's process has ended, or it closed the exchange or failed while others needed it."""


class PeerTimeout(PeerFault):
    """A peer did not do its part before the deadline."""


class SessionPoisoned(AscendMoeError):
    """The exchange was used after a failure. Its memory is not safe to read; open a new exchange."""


class CaptureRefused(AscendMoeError):
    """A step cannot be captured into a device graph without becoming wrong."""


class Corruption(AscendMoeError):
    """Data in a window is not what its writer put there."""


class Unsupported(AscendMoeError):
    """A known feature that this version or this machine does not offer."""
