"""How long the ranks of a serving server wait in SGLang's own collectives, and what is said when one fails.

SGLang gives its groups half an hour to two hours. Gloo keeps them for barriers and for transfers between two ranks,
which SGLang uses while weights are moved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout
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


def explained(collective: Collective, journal: Journal, waited_s: float, patience: Patience | None) -> PeerFault:
    """Why a collective failed, naming it and the ranks that did not come.

    waited_s: since this rank did something else, which is longer than it waited. patience: what `bound` gave; None:
    SGLang's own.
    """
    group = dist.group.WORLD if collective.group is None else collective.group
    seconds = group._get_backend(_CPU).options._timeout.total_seconds()
    set_by = "the timeout of the group" if patience is None else patience.set_by
    others = [rank for rank in dist.get_process_group_ranks(group) if rank != journal.rank]
    what = f"{collective.name} of SGLang's group {group.group_desc} (ranks {_span(group)}), step {journal.step}"
    ended, missing, given_up = _look(journal, others)
    if ended:
        one = ended[0] if len(ended) == 1 else None
        return PeerLost(f"{ranks_in_words(ended)} failed, or has ended, before {what}", one)
    blamed = missing[0] if len(missing) == 1 else None
    who = ranks_in_words(missing) if missing else "some rank"
    if given_up or waited_s >= seconds:
        return PeerTimeout(f"{who} had not come to {what}, within {seconds:g} s ({set_by})", blamed)
    return PeerLost(f"{who} closed its connections before {what}", blamed)


def _span(group: dist.ProcessGroup) -> str:
    return ", ".join(map(str, dist.get_process_group_ranks(group)))


def _look(journal: Journal, others: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Of `others`, those that have failed or ended, those that still serve, and those that gave up waiting.

    Looks again until somebody has ended or only one is left that serves, at most for `GRACE_S`.
    """
    until = time.monotonic() + GRACE_S
    while True:
        found = {rank: status for rank, status in journal.statuses().items() if rank in others}
        ended = [rank for rank, (process, state) in found.items() if state is State.FAILED or _has_ended(process)]
        given_up = [rank for rank, (_, state) in found.items() if state is State.GAVE_UP and rank not in ended]
        missing = [rank for rank in found if rank not in ended and rank not in given_up]
        if ended or time.monotonic() > until or (given_up and len(missing) <= 1):
            return ended, missing, given_up
        time.sleep(_POLL_S)


def _has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
