"""What ranks of later pipeline stages say of themselves, where the first stage, which answers requests, can read it.

A stage hears of a request when the one before it has begun the next batch, so the first cannot wait for the others to
answer: they publish in torch's store, at most once a second while they work, and when they go idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_process_group_store

INTERVAL_NS = 10**9
_KEY = "ascend_moe_state"


class Publisher:
    """Of one rank."""

    def __init__(self, describe: Callable[[], bytes]) -> None:
        """describe: what is published."""
        self._describe = describe
        self._published_ns = 0
        self._is_new = False
        self.publish()

    def publish(self) -> None:
        _get_process_group_store(dist.group.WORLD).set(f"{_KEY}/{dist.get_rank()}", self._describe())
        self._published_ns = time.monotonic_ns()
        self._is_new = False

    def after_batch(self) -> None:
        """This rank has the result of a batch."""
        self._is_new = True
        if time.monotonic_ns() - self._published_ns >= INTERVAL_NS:
            self.publish()

    def when_idle(self) -> None:
        """This rank has nothing to do, as it may be told again and again."""
        if self._is_new:
            self.publish()


def published(first: int) -> list[bytes]:
    """What each rank from `first` on has published last, by rank; all have a `Publisher`."""
    store = _get_process_group_store(dist.group.WORLD)
    return [store.get(f"{_KEY}/{rank}") for rank in range(first, dist.get_world_size())]
