"""How long the ranks of a serving server wait in SGLang's own collectives, and what is said when one fails.

SGLang gives its groups half an hour to two hours. Gloo keeps them for barriers and for transfers between two ranks,
which SGLang uses while weights are moved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple, NoReturn

import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerLost, PeerTimeout
from sglang_ascend_moe.exchange.control.waiting import Patience
from sglang_ascend_moe.serving.blame import Collective
from sglang_ascend_moe.serving.worker.journal import Journal, State, ranks_in_words

IDLE_S = 1.0
"""How long an idle rank may sleep before it meets the others again."""
GRACE_S = 1.0
"""For which a rank that gives up waiting looks who else does: what is left is whom all wait for."""
_POLL_S = 0.02
_CPU = torch.device("cpu")


def bound(groups: Iterable[dist.ProcessGroup], timeout_s: float) -> Patience:
    """From now on a collective over one of these gloo groups fails when it takes so long."""
    patience = Patience(timeout_s + IDLE_S, f"--ascend-moe-timeout and {IDLE_S:g} s for an idle rank")
    for group in groups:
        group._get_backend(_CPU)._set_default_timeout(timedelta(seconds=patience.seconds))
    return patience


def gloo_groups() -> list[dist.ProcessGroup]:
    """SGLang's groups in this process, but those of NPUs."""
    from sglang.srt.distributed import parallel_state

    groups = [dist.group.WORLD]
    for known in parallel_state._groups.values():
        coordinator = known()
        if coordinator is not None:
            groups += [coordinator.cpu_group, coordinator.device_group]
    return [group for group in groups if group is not None and dist.get_backend(group) == "gloo"]


def bound_of(collective: Collective) -> float:
    """Seconds after which it fails."""
    timeout: timedelta = _group_of(collective)._get_backend(_CPU).options._timeout
    return timeout.total_seconds()


def _group_of(collective: Collective) -> dist.ProcessGroup:
    return dist.group.WORLD if collective.group is None else collective.group


def explain(
    error: BaseException, collective: Collective, journal: Journal, timed_out: bool, patience: Patience | None
) -> NoReturn:
    """Raise why a collective failed, naming it and the ranks that did not come: `PeerTimeout` or `PeerLost`.

    timed_out: whether this rank may have waited as long as it may; one that has not may have lost a rank that has.
    patience: what `bound` gave; None: SGLang's own.
    """
    group = _group_of(collective)
    ranks = dist.get_process_group_ranks(group)
    what = f"{collective.name} of SGLang's group {group.group_desc} ({ranks_in_words(ranks)}), step {journal.step}"
    found = _look(journal, [rank for rank in ranks if rank != journal.rank])
    if found.ended:
        raise PeerLost(
            f"{ranks_in_words(found.ended)} failed, or has ended, before {what}", _only(found.ended)
        ) from error
    who = ranks_in_words(found.serving) if found.serving else "some rank"
    if timed_out or found.timed_out:
        set_by = "the timeout of the group" if patience is None else patience.set_by
        raise PeerTimeout(
            f"{who} had not come to {what}, within {bound_of(collective):g} s ({set_by})", _only(found.serving)
        ) from error
    raise PeerLost(f"{who} closed its connections before {what}", _only(found.serving)) from error


def _only(ranks: list[int]) -> int | None:
    return ranks[0] if len(ranks) == 1 else None


class _Found(NamedTuple):
    """Ranks that failed or ended, that serve as if nothing happened, and that waited for others as long as they may."""

    ended: list[int]
    serving: list[int]
    timed_out: list[int]


def _look(journal: Journal, others: list[int]) -> _Found:
    """How `others` are: looks until one has ended or only one still serves, at most for `GRACE_S`."""
    until = time.monotonic() + GRACE_S
    while True:
        statuses = {rank: status for rank, status in journal.statuses().items() if rank in others}
        ended = [
            rank
            for rank, (process, state) in statuses.items()
            if state is State.FAILED or journal.has_ended(rank, process)
        ]
        serving = [rank for rank, (_, state) in statuses.items() if state is State.SERVING and rank not in ended]
        timed_out = [rank for rank, (_, state) in statuses.items() if state is State.TIMED_OUT and rank not in ended]
        some_gave_up = len(serving) + len(ended) < len(statuses)
        if ended or (some_gave_up and len(serving) <= 1) or time.monotonic() > until:
            return _Found(ended, serving, timed_out)
        time.sleep(_POLL_S)
