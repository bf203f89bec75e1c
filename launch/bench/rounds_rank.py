"""One rank of `bench exchange --rounds`: `python -m sglang_ascend_moe.launch.bench.rounds_rank RUN_FILE RANK`."""

from __future__ import annotations

import math
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from sglang_ascend_moe import Exchange, ExpertRows
from sglang_ascend_moe.launch.bench.case_memory import received_rows
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.drawn_routing import make_batch, traffic
from sglang_ascend_moe.launch.bench.measure import LEAST_ITERATIONS, WARM_UPS, SharedClock, Timed, gather
from sglang_ascend_moe.launch.bench.rank import CaseFailed, leave, open_ranks, raise_together
from sglang_ascend_moe.launch.bench.rank_processes import WRONG_RESULT
from sglang_ascend_moe.launch.bench.records import write_records
from sglang_ascend_moe.launch.bench.rounds import RoundsRecord, RoundsRun
from sglang_ascend_moe.launch.bench.row_kernels import Shape, stand_in_experts
from sglang_ascend_moe.launch.bench.shared_memory import TIMEOUT_S
from sglang_ascend_moe.launch.bench.statistics import elapsed, spread
from sglang_ascend_moe.launch.bench.variants.variant import Ranks
from sglang_ascend_moe.serving.launcher.exit_codes import OK
from sglang_ascend_moe.windows.layout import ExchangeParameters, bytes_for_capacity

_GROWTH = 1.02
"""Chunks of tokens do not divide evenly, so that a window takes a little more than its part of the rows."""


class LayerInRounds:
    """One exchange whose window makes the batch of `case` take `rounds` rounds.

    Raises `CaseFailed` if there is none.
    """

    def __init__(self, case: Case, rounds: int, ranks: Ranks) -> None:
        self.rounds = rounds
        self._batch = make_batch(case, ranks.rank)
        self._shape = Shape.of(case, ranks.rank)
        self.out = torch.empty_like(self._batch.x)
        p = ExchangeParameters(
            ranks=case.ranks, num_experts=case.experts, hidden=case.hidden, max_tokens=case.tokens, topk=case.topk,
            quant="int8" if case.dtype == "int8" else None, timeout_s=TIMEOUT_S,
        )  # fmt: skip
        received = max(received_rows(case, traffic(case)))
        rows = max(math.ceil(received / rounds), p.ranks * p.rows_per_token)
        while True:
            self.window_bytes = bytes_for_capacity(p, rows)
            self._exchange = Exchange.open(ranks.group, msgspec.structs.replace(p, window_bytes=self.window_bytes))
            needed = self.run()
            if needed == rounds:
                return
            self._exchange.close()
            if needed < rounds:
                raise CaseFailed(f"no window makes {case.tokens} tokens take {rounds} rounds; raise --tokens")
            rows = math.ceil(rows * _GROWTH)

    def run(self) -> int:
        """The layer once; the number of its rounds."""
        rounds = 0

        def experts(rows: ExpertRows) -> None:
            nonlocal rounds
            rounds += 1
            stand_in_experts(self._shape, rows.rows, rows.scales, int(rows.counts.sum()), rows.out)

        x, ids, weights = self._batch
        self._exchange.run(x, ids, weights, experts, phase="prefill", out=self.out)
        return rounds

    def close(self) -> None:
        self._exchange.close()


def main(arguments: list[str]) -> int:
    """Measures every case of the run; rank 0 writes the records after each, and tells how far it is."""
    run_file, place = arguments
    run = msgspec.json.decode(Path(run_file).read_bytes(), type=RoundsRun)
    ranks = open_ranks(run.store, int(place), run.cases[0].ranks)
    records: list[RoundsRecord] = []
    for index, case in enumerate(run.cases):
        if ranks.rank == 0:
            print(f"[{index + 1}/{len(run.cases)}] {case.text()}", file=sys.stderr, flush=True)
        try:
            records += measure_case(run, case, ranks)
        except CaseFailed as failure:
            if ranks.rank == 0:
                print(f"check failed: {failure}", file=sys.stderr)
            return WRONG_RESULT
        if ranks.rank == 0:
            for path in run.results:
                write_records(Path(path), records)
    dist.barrier(group=ranks.group)
    return OK


def measure_case(run: RoundsRun, case: Case, ranks: Ranks) -> list[RoundsRecord]:
    """Every number of rounds in every iteration, in an order that is drawn anew. Raises `CaseFailed` on every rank."""
    clock = SharedClock(ranks)
    with ExitStack() as closing:
        layers = []
        for rounds in run.rounds:
            layers.append(LayerInRounds(case, rounds, ranks))
            closing.callback(layers[-1].close)
            problem = None if torch.equal(layers[0].out, layers[-1].out) else "another result than one round's"
            raise_together(f"{rounds} rounds", problem, ranks)
        own: dict[int, list[Timed]] = {layer.rounds: [] for layer in layers}
        order, shuffle = list(layers), random.Random(case.seed).shuffle
        for iteration in range(-WARM_UPS, run.iterations):
            if iteration >= LEAST_ITERATIONS and clock.elapsed() > run.case_seconds:
                break
            shuffle(order)
            for layer in order:
                ranks.barrier.wait()
                begin = time.perf_counter_ns()
                layer.run()
                if iteration >= 0:
                    own[layer.rounds].append(Timed(begin, time.perf_counter_ns()))
        everyone = gather(torch.tensor([own[layer.rounds] for layer in layers]), ranks)
    # [layers][begin, end][ranks][iterations]
    found = [elapsed(*times) for times in everyone.permute(1, 3, 0, 2).tolist()]
    return [_record(case, layer, times) for layer, times in zip(layers, found, strict=True)]


def _record(case: Case, layer: LayerInRounds, times: list[int]) -> RoundsRecord:
    found = spread(times)
    median, p10, p90 = (round(value, 3) for value in found)
    return RoundsRecord(
        case=case, rounds=layer.rounds, window_bytes=layer.window_bytes, median_us=median, p10_us=p10, p90_us=p90,
        iterations=len(times), doubtful=found.doubtful,
    )  # fmt: skip


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
