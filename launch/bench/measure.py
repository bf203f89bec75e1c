"""The timed part: every variant in every iteration, in an order that is drawn anew each time."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.launch.bench.case_memory import received_rows
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.records import OPS, Op
from sglang_ascend_moe.launch.bench.row_kernels import Shape, stand_in_experts
from sglang_ascend_moe.launch.bench.statistics import elapsed, quantile
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Variant

WARM_UPS = 1
LEAST_ITERATIONS = 3
STORE_TRIALS = 5
STORE_TRIAL_SECONDS = 1.0


class Measured(NamedTuple):
    """`times` [variant][op]: nanoseconds of each iteration, as `statistics.elapsed` counts them.

    `stores` [variant][op]: see `Variant.stores`.
    """

    times: dict[str, dict[Op, list[int]]]
    stores: dict[str, dict[Op, str]]


class Timed(NamedTuple):
    """When an operation began and ended on one rank: nanoseconds of a clock that all processes share."""

    begin: int
    end: int


class Stopwatch:
    """Takes one batch through variants and times the two operations."""

    def __init__(self, case: Case, ranks: Ranks, batch: Batch, traffic: Tensor) -> None:
        """`traffic` [ranks, experts]: rows that each rank sends to each expert."""
        self._shape = Shape.of(case, ranks.rank)
        self._ranks = ranks
        self._batch = batch
        self._pristine = batch.x.clone()
        self._rows = received_rows(case, traffic)[ranks.rank]

    def run(self, variant: Variant) -> tuple[Timed, Timed]:
        """Dispatch and combine on this rank.

        Before dispatch x is written anew; between the two every rank reads the rows that arrived and writes results, as
        experts would. Each operation begins when all ranks have come.
        """
        variant.prepare(self._batch, self._pristine)
        self._ranks.barrier.wait()
        begin = time.perf_counter_ns()
        handle = variant.dispatch(self._batch)
        dispatched = Timed(begin, time.perf_counter_ns())
        self._ranks.barrier.wait()
        self._experts(variant.arrived(handle))
        variant.computed(handle)
        self._ranks.barrier.wait()
        begin = time.perf_counter_ns()
        variant.combine(handle)
        return dispatched, Timed(begin, time.perf_counter_ns())

    def _experts(self, arrived: Arrived) -> None:
        stand_in_experts(self._shape, arrived.rows, arrived.scales, self._rows, arrived.out)


def measure(
    case: Case, ranks: Ranks, variants: Mapping[str, Variant], stopwatch: Stopwatch, iterations: int, seconds: float
) -> Measured:
    """At most `iterations`, ended after `seconds`, but never before LEAST_ITERATIONS."""
    clock = SharedClock(ranks)
    stores = {name: choose_stores(variant, stopwatch, ranks, clock) for name, variant in variants.items()}
    order = list(variants)
    shuffle = random.Random(case.seed).shuffle
    own: dict[str, dict[Op, list[Timed]]] = {name: {op: [] for op in OPS} for name in order}
    gc.collect()
    gc.disable()
    try:
        for iteration in range(-WARM_UPS, iterations):
            if iteration >= LEAST_ITERATIONS and clock.elapsed() > seconds:
                break
            shuffle(order)
            for name in order:
                operations = stopwatch.run(variants[name])
                if iteration >= 0:
                    for op, timed in zip(OPS, operations, strict=True):
                        own[name][op].append(timed)
    finally:
        gc.enable()
    everyone = gather(torch.tensor([own[name][op] for name in variants for op in OPS]), ranks)
    # [variants * ops][begin, end][ranks][iterations]
    operations = iter(everyone.permute(1, 3, 0, 2).tolist())
    return Measured({name: {op: elapsed(*next(operations)) for op in OPS} for name in variants}, stores)


def choose_stores(variant: Variant, stopwatch: Stopwatch, ranks: Ranks, clock: SharedClock) -> dict[Op, str]:
    """Tries every store that `variant` has and leaves it with the fastest for each operation, the same on all ranks."""
    medians: dict[str, list[float]] = {}
    for store in variant.stores if len(variant.stores) > 1 else ():
        for op in OPS:
            variant.use(op, store)
        stopwatch.run(variant)
        begin = clock.elapsed()
        trials: list[tuple[Timed, Timed]] = []
        while not trials or (len(trials) < STORE_TRIALS and clock.elapsed() - begin < STORE_TRIAL_SECONDS):
            trials.append(stopwatch.run(variant))
        operations = gather(torch.tensor(trials), ranks).permute(2, 3, 0, 1).tolist()
        medians[store] = [quantile(sorted(elapsed(*timed)), 0.5) for timed in operations]
    chosen: dict[Op, str] = {op: store for op in OPS for store in variant.stores[:1]}
    if medians:
        for index, op in enumerate(OPS):
            by_store = {store: times[index] for store, times in medians.items()}
            chosen[op] = min(by_store, key=by_store.__getitem__)
            variant.use(op, chosen[op])
    return chosen


class SharedClock:
    """Seconds since it was made, as rank 0 sees it: all ranks decide alike."""

    def __init__(self, ranks: Ranks) -> None:
        self._group = ranks.group
        self._begin = time.monotonic()

    def elapsed(self) -> float:
        """Every rank has to call it at the same point."""
        seconds = torch.tensor(time.monotonic() - self._begin, dtype=torch.float64)
        dist.broadcast(seconds, 0, group=self._group)
        return float(seconds)


def gather(own: Tensor, ranks: Ranks) -> Tensor:
    """own of every rank, [ranks, ...]."""
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(ranks.group))]
    dist.all_gather(everyone, own, group=ranks.group)
    return torch.stack(everyone)
