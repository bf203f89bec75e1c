"""Which ranks have come to a collective: each says so in the store of the group, which also the others can read.

A collective that fails does not tell who is missing.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_process_group_store

LOOK_S = 5.0
"""How long a look into the store may take: it lies in the process of a rank, which may be the one that is missing."""

_calls: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()


class RollCall:
    """One collective of a group, of which every rank takes part in every one, in the same order."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """This rank has come."""
        self._store = _get_process_group_store(group)
        self._ranks = dist.get_world_size(group)
        self._number = _calls[group] = _calls.get(group, 0) + 1
        self._store.set(_key(dist.get_rank(group)), str(self._number))

    def absent(self) -> list[int]:
        """The ranks that have not come; empty also if the store does not answer."""
        found: list[int] = []
        looking = threading.Thread(target=self._look, args=[found], daemon=True)
        looking.start()
        looking.join(LOOK_S)
        return [] if looking.is_alive() else found

    def _look(self, found: list[int]) -> None:
        absent = []
        for rank in range(self._ranks):
            try:
                if not self._store.check([_key(rank)]) or int(self._store.get(_key(rank))) < self._number:
                    absent.append(rank)
            except dist.DistError:
                return
        found += absent


def _key(rank: int) -> str:
    return f"ascend-moe-roll-call/{rank}"
