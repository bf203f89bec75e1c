"""How long the ranks of a serving server wait in SGLang's own collectives, and what is said when one fails.

SGLang gives its groups half an hour to two hours. Gloo keeps them for barriers and for transfers between two ranks,
which SGLang uses while weights are moved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple, NoReturn

import psutil
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


def explain(
    error: BaseException, collective: Collective, journal: Journal, waited_s: float, patience: Patience | None
) -> NoReturn:
    """Raise why a collective failed, naming it and the ranks that did not come: `PeerTimeout` or `PeerLost`.

    waited_s: since this rank did something else, which is longer than it waited. patience: what `bound` gave; None:
    SGLang's own.
    """
    group = dist.group.WORLD if collective.group is None else collective.group
    ranks = dist.get_process_group_ranks(group)
    what = f"{collective.name} of SGLang's group {group.group_desc} ({ranks_in_words(ranks)}), step {journal.step}"
    found = _look(journal, [rank for rank in ranks if rank != journal.rank])
    if found.ended:
        raise PeerLost(
            f"{ranks_in_words(found.ended)} failed, or has ended, before {what}", _only(found.ended)
        ) from error
    seconds = group._get_backend(_CPU).options._timeout.total_seconds()
    who = ranks_in_words(found.serving) if found.serving else "some rank"
    if found.gave_up or waited_s >= seconds:
        set_by = "the timeout of the group" if patience is None else patience.set_by
        raise PeerTimeout(
            f"{who} had not come to {what}, within {seconds:g} s ({set_by})", _only(found.serving)
        ) from error
    raise PeerLost(f"{who} closed its connections before {what}", _only(found.serving)) from error


def _only(ranks: list[int]) -> int | None:
    return ranks[0] if len(ranks) == 1 else None


class _Found(NamedTuple):
    """Ranks that failed or ended, that serve as if nothing happened, and that gave up waiting."""

    ended: list[int]
    serving: list[int]
    gave_up: list[int]


def _look(journal: Journal, others: list[int]) -> _Found:
    """How `others` are: looks until one has ended or only one still serves, at most for `GRACE_S`."""
    until = time.monotonic() + GRACE_S
    while True:
        statuses = {rank: status for rank, status in journal.statuses().items() if rank in others}
        ended = [rank for rank, (process, state) in statuses.items() if state is State.FAILED or _has_ended(process)]
        gave_up = [rank for rank, (_, state) in statuses.items() if state is State.GAVE_UP and rank not in ended]
        found = _Found(ended, [rank for rank in statuses if rank not in (*ended, *gave_up)], gave_up)
        if ended or (gave_up and len(found.serving) <= 1) or time.monotonic() > until:
            return found
        time.sleep(_POLL_S)


def _has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
