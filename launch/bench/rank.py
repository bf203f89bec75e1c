"""One rank of a benchmark, a process of its own: `python -m sglang_ascend_moe.launch.bench.rank RUN_FILE RANK|mpi`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import torch
import torch.distributed as dist

from sglang_ascend_moe.launch.bench.cases import Case, Run
from sglang_ascend_moe.launch.bench.drawn_routing import make_batch, traffic
from sglang_ascend_moe.launch.bench.measure import Measured, SharedClock, Stopwatch, measure
from sglang_ascend_moe.launch.bench.rank_processes import WRONG_RESULT
from sglang_ascend_moe.launch.bench.records import OPS, Record, judged, write_records
from sglang_ascend_moe.launch.bench.shared_memory import Barrier
from sglang_ascend_moe.launch.bench.statistics import spread
from sglang_ascend_moe.launch.bench.tables import absences
from sglang_ascend_moe.launch.bench.variant_opening import OpenedVariants, left_out, open_variants
from sglang_ascend_moe.launch.bench.variants.variant import Ranks
from sglang_ascend_moe.serving.launcher.exit_codes import OK

MPI = "mpi"
MPI_LIBRARY = "mpi4py.MPI"


class CaseFailed(Exception):
    """A variant delivered something else than it had to."""


def main(arguments: list[str]) -> int:
    """Measures every case of the run. Rank 0 writes the records after each, and tells how far it is."""
    run_file, place = arguments
    run = msgspec.json.decode(Path(run_file).read_bytes(), type=Run)
    communicator = _communicator() if place == MPI else None
    rank = int(place) if communicator is None else communicator.Get_rank()
    ranks = open_ranks(run.store, rank, run.cases[0].ranks, communicator)
    clock = SharedClock(ranks)
    records: list[Record] = []
    for index, case in enumerate(run.cases):
        if rank == 0:
            print(f"[{index + 1}/{len(run.cases)}] {case.text()}", file=sys.stderr, flush=True)
        left = run.total_seconds - clock.elapsed()
        try:
            if left > 0:
                found = measure_case(run, case, ranks, min(run.case_seconds, left / (len(run.cases) - index)))
            else:
                reason = f"the {run.total_seconds:g} s of the run were over"
                found = [record for name in run.variants for record in absent_records(case, name, reason)]
        except CaseFailed as failure:
            if rank == 0:
                print(f"check failed: {failure}", file=sys.stderr)
            return WRONG_RESULT
        if rank == 0:
            records += found
            for text in absences(found):
                print(f"not measured: {text}", file=sys.stderr)
            for path in run.results:
                write_records(Path(path), records)
    dist.barrier(group=ranks.group)
    return OK


def open_ranks(store: str, rank: int, size: int, communicator: Any = None) -> Ranks:
    """This process among the others, which meet at `store`: on a core of its own, with one thread."""
    # Ctrl-C is for the command that started the ranks; it ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("torch.distributed made no default group")
    return Ranks(rank, group, Barrier(group), communicator)


def pin(rank: int) -> None:
    """To one of the cores that this process may use, round robin."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def measure_case(run: Run, case: Case, ranks: Ranks, seconds: float) -> list[Record]:
    """About `seconds` from opening to closing. Raises `CaseFailed` on every rank before anything is timed."""
    clock = SharedClock(ranks)
    sent = traffic(case)
    absent = left_out(run.variants, run.absent, case, ranks, sent)
    if set(absent) >= set(run.variants):
        return [record for name in run.variants for record in absent_records(case, name, absent[name])]
    batch = make_batch(case, ranks.rank)
    opened = open_variants(run.variants, absent, case, ranks, batch, sent)
    try:
        for name, variant in opened.variants.items():
            raise_together(name, variant.problem(case, ranks, batch), ranks)
        stopwatch = Stopwatch(case, ranks, batch, sent)
        measured = measure(case, ranks, opened.variants, stopwatch, run.iterations, seconds - clock.elapsed())
    finally:
        for variant in opened.variants.values():
            variant.close()
    payload = Payload(rows=int(sent.sum()) // case.ranks, int8=case.dtype == "int8", hidden=case.hidden)
    return records_of(run, case, opened, measured, payload)


class Payload(NamedTuple):
    """What one rank has to move, on average."""

    rows: int
    int8: bool
    hidden: int

    def bytes_of(self, op: str) -> int:
        return self.rows * (self.hidden + 4 if self.int8 and op == "dispatch" else self.hidden * 2)


def records_of(run: Run, case: Case, opened: OpenedVariants, measured: Measured, payload: Payload) -> list[Record]:
    """One record per variant and operation, those that are absent included."""
    found = []
    for name in run.variants:
        if name in opened.absent:
            found += absent_records(case, name, opened.absent[name])
            continue
        for op in OPS:
            times = measured.times[name][op]
            found_spread = spread(times)
            median, p10, p90 = (round(value, 3) for value in found_spread)
            found.append(
                Record(
                    **msgspec.structs.asdict(case), op=op, variant=name, median_us=median, p10_us=p10, p90_us=p90,
                    iterations=len(times), checked=True, store=measured.stores[name].get(op),
                    payload_bytes=payload.bytes_of(op), doubtful=found_spread.doubtful,
                )
            )  # fmt: skip
    return judged(found)


def absent_records(case: Case, variant: str, reason: str) -> list[Record]:
    """Say why `variant` was not measured."""
    return [
        Record(
            **msgspec.structs.asdict(case), op=op, variant=variant, median_us=None, p10_us=None, p90_us=None,
            iterations=0, checked=False, absent=reason,
        )
        for op in OPS
    ]  # fmt: skip


def _communicator() -> Any:
    from mpi4py.MPI import COMM_WORLD

    return COMM_WORLD


def raise_together(variant: str, problem: str | None, ranks: Ranks) -> None:
    """Raise `CaseFailed` on every rank if one of them has a problem."""
    problems: list[str | None] = [None] * dist.get_world_size(ranks.group)
    dist.all_gather_object(problems, problem, group=ranks.group)
    found = [text for text in problems if text is not None]
    if found:
        raise CaseFailed(f"{variant}: {'; '.join(found)}")


def leave(code: int) -> NoReturn:
    """Ends this process at once: threads of gloo may still hold tensors, and abort when the interpreter is taken down
    under them."""
    if MPI_LIBRARY in sys.modules:
        sys.modules[MPI_LIBRARY].Finalize()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
