"""Ranks of a stage make groups among themselves, as many as they need; the first stage reads what others publish."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from sglang_ascend_moe.serving.worker.stage_groups import new_group
from sglang_ascend_moe.serving.worker.stage_states import INTERVAL_NS, Publisher, published
from tests.exchange.conftest import fresh_pool
from tests.exchange.pool import Rank

__all__ = ["fresh_pool"]

GROUPS = {0: 1, 1: 3}
"""By stage."""


def sum_in_groups(rank: Rank) -> list[int]:
    """Sums over the ranks of a stage, of which there are two, in each group that it makes."""
    stage = rank.rank // 2
    sums = []
    for number in range(GROUPS[stage]):
        group = new_group([2 * stage, 2 * stage + 1], timedelta(seconds=60))
        own = torch.tensor([rank.rank + 10 * number])
        dist.all_reduce(own, group=group)
        sums.append(int(own))
    return sums


def test_stages_may_make_different_numbers_of_groups(fresh_pool):
    pool = fresh_pool(4)
    pool.start(sum_in_groups)
    assert pool.collect() == [[1], [1], [5, 25, 45], [5, 25, 45]]


def publish(rank: Rank) -> list[bytes]:
    """What the first rank reads of the others."""
    said = iter(range(10))
    publisher = Publisher(lambda: f"{rank.rank}: {next(said)}".encode())
    publisher.when_idle()
    # Not yet a second ago.
    publisher.after_batch()
    if rank.rank == 1:
        publisher.when_idle()
        publisher.when_idle()
    if rank.rank == 2:
        publisher._published_ns -= INTERVAL_NS
        publisher.after_batch()
        publisher.after_batch()
    dist.barrier(group=rank.group)
    return published(1)


def test_others_publish_when_they_go_idle_and_at_most_once_a_second_before(fresh_pool):
    pool = fresh_pool(4)
    pool.start(publish)
    assert pool.collect() == [[b"1: 1", b"2: 1", b"3: 0"]] * 4
