"""Opens every variant of a case, and says of those that cannot be measured why."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.routing import Batch
from sglang_ascend_moe.launch.bench.row_kernels import Shape
from sglang_ascend_moe.launch.bench.shared_memory import RelayMemory
from sglang_ascend_moe.launch.bench.variants.collective import Collective
from sglang_ascend_moe.launch.bench.variants.memcpy import Memcpy, QuantiseMemcpy
from sglang_ascend_moe.launch.bench.variants.packed import CollectiveNative, Mpi
from sglang_ascend_moe.launch.bench.variants.relay import Relay
from sglang_ascend_moe.launch.bench.variants.relay_free import RelayFree
from sglang_ascend_moe.launch.bench.variants.variant import Ranks, Scratch, Variant

SPARE_BYTES = 3 << 30
"""Left to everyone else on the machine, and for what does not grow with the rows."""


class Opened(NamedTuple):
    """`absent` [variant]: why it is not measured in this case."""

    variants: dict[str, Variant]
    absent: dict[str, str]


def open_variants(
    names: list[str], absent: dict[str, str], case: Case, ranks: Ranks, batch: Batch, traffic: Tensor
) -> Opened:
    """On every rank with the same arguments but `batch`. `absent`: those that cannot run on this machine at all."""
    local = case.experts // case.ranks
    rows = int(traffic[:, ranks.rank * local : (ranks.rank + 1) * local].sum())
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
    missing |= without_room(case, [name for name in names if name not in missing], _available_to_all(ranks))
    variants = {}
    for name in names:
        if name in missing:
            continue
        try:
            variants[name] = makers[name]()
        except Unsupported as error:
            missing[name] = str(error)
    return Opened(variants, missing)


def without_room(case: Case, names: list[str], available: int) -> dict[str, str]:
    """Why some of `names` are left out: they and the rest would need more than the `available` bytes of the machine.

    Variants are left out from the hungriest on.
    """
    missing: dict[str, str] = {}
    remaining = [name for name in _NEEDS if name in names]
    while remaining and (needed := _bytes_of(case, remaining)) > available - SPARE_BYTES:
        without = {name: _bytes_of(case, [other for other in remaining if other != name]) for name in remaining}
        hungriest = min(remaining, key=without.__getitem__)
        missing[hungriest] = (
            f"not enough memory: all variants together touch {needed / 2**30:.1f} GiB, "
            f"{available / 2**30:.1f} GiB are available"
        )
        remaining.remove(hungriest)
    return missing


class _Need(NamedTuple):
    """What a variant keeps, in copies of all routed rows and in copies of all results. Variants whose needs have the
    same name share the memory."""

    rows: int
    results: int
    name: str


_NEEDS = {
    "relay-free": (_Need(1, 1, "windows"),),
    "relay": (_Need(1, 1, "relay buffers"), _Need(1, 1, "scratch")),
    "relay-direct": (_Need(1, 1, "relay buffers"), _Need(1, 1, "scratch")),
    "collective": (_Need(2, 2, "tensors"),),
    "collective-native": (_Need(1, 1, "scratch"),),
    "mpi": (_Need(1, 1, "scratch"),),
    "memcpy": (_Need(1, 1, "relay buffers"),),
    "quantise-memcpy": (_Need(1, 1, "relay buffers"),),
}


def _bytes_of(case: Case, names: list[str]) -> int:
    shape = Shape.of(case, 0)
    routed = case.ranks * case.tokens * case.topk
    needs = {need.name: need for name in names for need in _NEEDS[name]}
    return sum(routed * (need.rows * shape.packed_bytes + need.results * shape.result_bytes) for need in needs.values())


def _available_to_all(ranks: Ranks) -> int:
    """The same number on every rank."""
    available = torch.tensor(memory_available())
    dist.all_reduce(available, dist.ReduceOp.MIN, group=ranks.group)
    return int(available)


def memory_available() -> int:
    """Bytes that can be used on this machine without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise Unsupported("/proc/meminfo does not say how much memory is available")
