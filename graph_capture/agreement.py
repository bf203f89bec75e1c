"""The guard on all ranks together: one verdict, and the same number of exchanges on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import torch.distributed as dist

from sglang_ascend_moe.errors import AscendMoeError, CaptureRefused, ProtocolMismatch
from sglang_ascend_moe.exchange.control.rendezvous import BRING_UP, gather_frames
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.graph_capture.guard import DryRuns, in_words

_ROOM = 1 << 17
_LONGEST_ERROR = 2000


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank tells the others: what it is about to do, what its step raised, or what was found. May be nothing."""

    words: list[str]


def check_together(
    fn: Callable[[], object],
    group: dist.ProcessGroup,
    *,
    passes: int = 2,
    subject: str = "the step",
    between: Callable[[], object] | None = None,
    into_launches: bool = False,
    secret: Secret | None = None,
) -> None:
    """As `guard.check`, on every rank of the gloo group `group`: all run `fn` equally often, and refuse if one has to.

    subject: what is captured, for example the bucket; the same on every rank. between: called after every run, unseen.
    into_launches: as in `guard.DryRuns`, with the same launches on every rank.
    secret: seals what ranks tell each other.

    Raises on every rank: `CaptureRefused` naming the ranks and their findings, or what differs between ranks; what `fn`
    raised, on the rank where it did, and `CaptureRefused` naming it on the others; `PeerLost`, `PeerTimeout`.
    """
    require_same(group, f"{subject} in {passes} passes", secret)
    runs = DryRuns(fn, passes, into_launches=into_launches)
    for _ in range(runs.total):
        try:
            runs.run()
        except BaseException as error:
            _tell(group, error, subject, secret)
            raise
        # Told after every run, so that nobody begins one that another rank will not take part in.
        _refuse_together(group, [], subject, secret)
        if between is not None:
            between()
    _refuse_together(group, in_words(runs.findings), subject, secret)


@contextmanager
def refusal_together(group: dist.ProcessGroup, *, subject: str, secret: Secret | None = None) -> Iterator[None]:
    """Within it a rank may refuse: if one has raised `CaptureRefused`, every rank raises it when all have come out.

    Arguments as of `check_together`. Of any other exception the other ranks are told likewise.
    """
    own: list[str] = []
    try:
        yield
    except CaptureRefused as refused:
        own = [str(refused)]
    except BaseException as error:
        _tell(group, error, subject, secret)
        raise
    _refuse_together(group, own, subject, secret)


def require_same(group: dist.ProcessGroup, intent: str, secret: Secret | None = None) -> None:
    """Raise `CaptureRefused` on every rank of `group` unless all are about to capture the same."""
    intents = [words[0] for words in _share(group, [intent], "a capture", secret)]
    for rank, other in enumerate(intents):
        if other != intents[0]:
            raise CaptureRefused(
                f"ranks are about to capture different things: rank 0 {intents[0]}, rank {rank} {other}; give every"
                " rank the same options"
            )


def _refuse_together(group: dist.ProcessGroup, own: list[str], subject: str, secret: Secret | None) -> None:
    said = [f"rank {rank}: {item}" for rank, words in enumerate(_share(group, own, subject, secret)) for item in words]
    if said:
        raise CaptureRefused(f"{subject} cannot be captured into a graph: {'; '.join(said)}")


def _tell(group: dist.ProcessGroup, error: BaseException, subject: str, secret: Secret | None) -> None:
    with suppress(AscendMoeError):
        _share(group, [f"the step raised {type(error).__name__}: {error}"[:_LONGEST_ERROR]], subject, secret)


def _share(group: dist.ProcessGroup, words: list[str], subject: str, secret: Secret | None) -> list[list[str]]:
    """Every rank's words, by rank. Raises `PeerTimeout` or `PeerLost` if a rank does not come, `ProtocolMismatch`."""
    said = msgspec.msgpack.encode(_Said(words))
    frames = gather_frames(group, said, _ROOM, BRING_UP, f"checked {subject}", secret)
    try:
        return [msgspec.msgpack.decode(frame, type=_Said).words for frame in frames]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolMismatch(f"what a rank says of a capture cannot be read: {error}") from error
