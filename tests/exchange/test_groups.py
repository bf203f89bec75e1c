"""Exchanges on parts of the world, side by side, and from another thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from .harmed_ranks import CALLS, SCENARIO, call
from .pool import Rank
from .surface import open_exchange


class Member:
    """A rank's place in a group that is a part of the world."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)


def exchange_in_parts_of_the_world(rank: Rank, implementation: str) -> None:
    # Ranks of the second group are in another order than in the world.
    parts = [[0, 2, 3], [1]], [[1, 3], [0, 2]]
    for partition in parts:
        groups = [dist.new_group(part, backend="gloo") for part in partition]
        mine = next(group for part, group in zip(partition, groups, strict=True) if rank.rank in part)
        member = Member(mine)
        with open_exchange(implementation, member, SCENARIO) as exchange:
            for how in CALLS:
                call(exchange, how, member)
        dist.barrier()
        for group in groups:
            if group is not dist.GroupMember.NON_GROUP_MEMBER:
                dist.destroy_process_group(group)


def test_parts_of_the_world_exchange_side_by_side(pools, implementation):
    pools.run(4, exchange_in_parts_of_the_world, implementation)


def alternate_two_exchanges(rank: Rank, implementation: str) -> None:
    other = SCENARIO._replace(hidden=64, topk=5, dtype="fp32", seed=5)
    with (
        open_exchange(implementation, rank, SCENARIO) as first,
        open_exchange(implementation, rank, other) as second,
    ):
        for _ in range(5):
            for how in CALLS:
                call(first, how, rank)
                call(second, how, rank, other)


def test_two_exchanges_of_one_process_do_not_disturb_each_other(pools, implementation):
    pools.run(3, alternate_two_exchanges, implementation)


def exchange_in_a_thread(rank: Rank, implementation: str) -> None:
    with (
        open_exchange(implementation, rank, SCENARIO) as exchange,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        for how in CALLS:
            thread.submit(call, exchange, how, rank).result()
            call(exchange, how, rank)


def test_calls_may_come_from_any_thread_one_at_a_time(pools, implementation):
    pools.run(2, exchange_in_a_thread, implementation)


def exchange_alone(rank: Rank, implementation: str) -> None:
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for how in CALLS:
            call(exchange, how, rank)


def test_a_single_rank_exchanges_with_itself(pools, implementation):
    pools.run(1, exchange_alone, implementation)
