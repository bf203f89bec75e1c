"""What ranks tell each other beside the windows, over torch.distributed: counts, ids, weights, scales."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.errors import InvalidInput, PeerLost
from sglang_ascend_moe.exchange.control.lifelines import ended
from sglang_ascend_moe.exchange.control.machine import this_machine
from sglang_ascend_moe.exchange.control.waiting import wait_for_ranks


class RankGroup:
    """The ranks of a Buffer, with process descriptors of those on this machine."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """`group` moves CPU tensors (gloo)."""
        backend = dist.get_backend(group)
        if "gloo" not in backend:
            raise InvalidInput(f"group has backend {backend!r}, which moves no CPU tensors; pass a gloo group")
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        machine = int.from_bytes(this_machine().identity[:7])
        told = self.gather(torch.tensor([os.getpid(), machine])).tolist()
        # A process of another machine is watched by the exchange.
        self._pidfds = [
            _open(peer, process) if peer != self.rank and where == machine else -1
            for peer, (process, where) in enumerate(told)
        ]

    def gather(self, values: Tensor) -> Tensor:
        """[ranks, n] of everyone's `values` [n], which have one length and dtype everywhere."""
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        wait_for_ranks(
            lambda: dist.all_gather(gathered, values, group=self.group, async_op=True),
            self.group, "taken part in the gather", calls_roll=False,
        )  # fmt: skip
        return torch.stack(gathered)

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """[sum(received), n]: rows [sum(sent), n] in the order of their destination ranks, sent there."""
        arrived = rows.new_empty(sum(received), rows.shape[1])
        own = rows.contiguous()
        wait_for_ranks(
            lambda: dist.all_to_all_single(arrived, own, received, sent, group=self.group, async_op=True),
            self.group, "taken part in the exchange of what belongs to rows", calls_roll=False,
        )  # fmt: skip
        return arrived

    def ended(self) -> list[bool]:
        """Which ranks' processes have ended."""
        gone = ended(self._pidfds)
        return [rank in gone for rank in range(self.size)]

    def close(self) -> None:
        for pidfd in self._pidfds:
            if pidfd >= 0:
                os.close(pidfd)
        self._pidfds = [-1] * self.size


def _open(rank: int, process: int) -> int:
    try:
        return os.pidfd_open(process)
    except ProcessLookupError as error:
        raise PeerLost(f"rank {rank} (process {process}) has ended, or runs in another PID namespace", rank) from error
