"""The guard on all ranks together: one verdict, and the same number of exchanges on every rank."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

import msgspec
import torch.distributed as dist

from sglang_ascend_moe.control.rendezvous import BRING_UP_TIMEOUT_S, gather_frames
from sglang_ascend_moe.errors import AscendMoeError, CaptureRefused
from sglang_ascend_moe.graph_capture.guard import DryRuns, in_words

_ROOM = 1 << 17
_LONGEST_ERROR = 2000


class _Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank is about to check."""

    subject: str
    passes: int


class _Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank has to say, each item a sentence: what its step raised, or what was found. Empty if all is well."""

    said: list[str]


_Block = TypeVar("_Block", _Intent, _Outcome)


def check_together(
    fn: Callable[[], object],
    group: dist.ProcessGroup,
    *,
    passes: int = 2,
    subject: str = "the step",
    recorded: Collection[str] = (),
) -> None:
    """As `guard.check`, on every rank of the gloo group `group`: all run `fn` equally often, and refuse if one has to.

    subject: what is captured, for example the bucket; the same on every rank. recorded: as in `guard.DryRuns`.

    Raises on every rank: `CaptureRefused` naming the ranks and their findings, or what differs between ranks; what `fn`
    raised, on the rank where it did, and `CaptureRefused` naming it on the others; `PeerLost`, `PeerTimeout`.
    """
    call = f"checked {subject}"
    intents = share(group, _Intent(subject, passes), call)
    for rank, intent in enumerate(intents):
        if intent != intents[0]:
            raise CaptureRefused(
                f"ranks are about to capture different things: rank 0 {intents[0].subject} with {intents[0].passes}"
                f" passes, rank {rank} {intent.subject} with {intent.passes}; give every rank the same options"
            )
    runs = DryRuns(fn, passes, recorded)
    for _ in range(runs.total):
        try:
            runs.run()
        except BaseException as error:
            with suppress(AscendMoeError):
                share(group, _Outcome([f"the step raised {type(error).__name__}: {error}"[:_LONGEST_ERROR]]), call)
            raise
        # Told after every run, so that nobody begins one that another rank will not take part in.
        _refuse_together(group, _Outcome([]), subject)
    _refuse_together(group, _Outcome(in_words(runs.findings)), subject)


def _refuse_together(group: dist.ProcessGroup, own: _Outcome, subject: str) -> None:
    outcomes = share(group, own, f"checked {subject}")
    said = [f"rank {rank}: {words}" for rank, outcome in enumerate(outcomes) for words in outcome.said]
    if said:
        raise CaptureRefused(f"{subject} cannot be captured into a graph: {'; '.join(said)}")


def share(group: dist.ProcessGroup, block: _Block, call: str) -> list[_Block]:
    """Every rank's `block`, by rank. Raises `PeerTimeout` or `PeerLost`, saying that not every rank `call`."""
    frames = gather_frames(group, msgspec.msgpack.encode(block), _ROOM, BRING_UP_TIMEOUT_S, call)
    return [msgspec.msgpack.decode(frame, type=type(block)) for frame in frames]
