"""Opens every variant of a case, and says of those that cannot be measured why."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.bench.case_memory import bytes_available, received_rows, without_room
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.shared_memory import RelayMemory
from sglang_ascend_moe.launch.bench.variants.gloo_collective import Collective
from sglang_ascend_moe.launch.bench.variants.memcpy import Memcpy, QuantiseMemcpy
from sglang_ascend_moe.launch.bench.variants.packed import CollectiveNative, Mpi
from sglang_ascend_moe.launch.bench.variants.relay import Relay
from sglang_ascend_moe.launch.bench.variants.relay_free import RelayFree
from sglang_ascend_moe.launch.bench.variants.variant import Ranks, Scratch, Variant
from sglang_ascend_moe.serving.machine_limits import read_limits


class OpenedVariants(NamedTuple):
    """`absent` [variant]: why it is not measured in this case."""

    variants: dict[str, Variant]
    absent: dict[str, str]


def open_variants(
    names: list[str], absent: dict[str, str], case: Case, ranks: Ranks, batch: Batch, traffic: Tensor
) -> OpenedVariants:
    """On every rank with the same arguments but `batch`. `absent`: those that are left out, and why."""
    local = case.experts // case.ranks
    rows = received_rows(case, traffic)[ranks.rank]
    scratch = Scratch()
    pairs = traffic.view(case.ranks, case.ranks, local).sum(dim=2)
    memory = cache(lambda: RelayMemory(case, ranks.group, int(pairs.max())))
    makers: dict[str, Callable[[], Variant]] = {
        "relay-free": lambda: RelayFree(case, ranks),
        "relay": lambda: Relay(case, ranks, memory(), scratch, rows, direct=False),
        "relay-direct": lambda: Relay(case, ranks, memory(), scratch, rows, direct=True),
        "collective": lambda: Collective(case, ranks),
        "collective-native": lambda: CollectiveNative(case, ranks, scratch, rows),
        "mpi": lambda: Mpi(case, ranks, scratch, rows),
        "memcpy": lambda: Memcpy(case, ranks, batch, memory(), traffic),
        "quantise-memcpy": lambda: QuantiseMemcpy(case, ranks, batch, memory(), traffic),
    }
    missing = {name: absent[name] for name in names if name in absent}
    variants = {}
    for name in names:
        if name in missing:
            continue
        try:
            variants[name] = makers[name]()
        except Unsupported as error:
            missing[name] = str(error)
    return OpenedVariants(variants, missing)


def left_out(names: list[str], absent: dict[str, str], case: Case, ranks: Ranks, traffic: Tensor) -> dict[str, str]:
    """`absent`, and which others of `names` have no room in memory: before anything is allocated for the case."""
    possible = [name for name in names if name not in absent]
    return absent | without_room(case, received_rows(case, traffic), possible, _available_to_all(ranks))


def _available_to_all(ranks: Ranks) -> int:
    """The same number on every rank."""
    available = torch.tensor(bytes_available(read_limits()))
    dist.all_reduce(available, dist.ReduceOp.MIN, group=ranks.group)
    return int(available)
