"""`ascend-moe bench exchange --rounds`: what it costs to take a prefill batch in rounds, because windows are small.

The whole layer is timed, the experts' part reads every row and writes a result; windows are as small as so many rounds
allow. Rounds go one after the other.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.rank_processes import run_processes

RANK_MODULE = "sglang_ascend_moe.launch.bench.rounds_rank"


class RoundsRun(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks are told. `rounds`: numbers of them, ascending, 1 among them. See `cases.Run` for the others."""

    cases: list[Case]
    rounds: list[int]
    iterations: int
    case_seconds: float
    store: str
    results: list[str]


class RoundsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The layer in one case with one number of rounds, in windows of so many bytes.

    Microseconds from when the first rank begins until the last has ended. What it gave was compared with what one round
    gives, bit for bit. `doubtful`: see `Record`.
    """

    case: Case
    rounds: int
    window_bytes: int
    median_us: float
    p10_us: float
    p90_us: float
    iterations: int
    doubtful: bool


class RoundsOutcome(msgspec.Struct, frozen=True):
    """As `rank_processes.Outcome`."""

    exit_code: int | None
    records: list[RoundsRecord]


def measure_rounds(
    cases: list[Case], rounds: list[int], iterations: int, case_seconds: float, json: Path | None = None
) -> RoundsOutcome:
    """Measures `cases`, each with every number of `rounds` and with one, alternating. `json` receives the records."""
    with tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as name:
        folder = Path(name)
        results = folder / "results"
        run = RoundsRun(
            cases=cases, rounds=sorted({1, *rounds}), iterations=iterations, case_seconds=case_seconds,
            store=str(folder / "store"), results=[str(results), *([str(json.absolute())] if json else [])],
        )  # fmt: skip
        (folder / "run").write_bytes(msgspec.json.encode(run))
        rank = [sys.executable, "-m", RANK_MODULE, str(folder / "run")]
        exit_code: int | None
        try:
            exit_code = run_processes([[*rank, str(number)] for number in range(cases[0].ranks)])
        except KeyboardInterrupt:
            exit_code = None
        records = msgspec.json.decode(results.read_bytes(), type=list[RoundsRecord]) if results.exists() else []
        return RoundsOutcome(exit_code, records)


def rounds_report(records: list[RoundsRecord]) -> str:
    """A table for each case; times also over that of one round."""
    lines: list[str] = []
    for case in dict.fromkeys(record.case for record in records):
        of_case = [record for record in records if record.case == case]
        lines += [
            case.text(),
            f"  {'rounds':>6}{'window, MiB':>13}{'layer, µs':>14}{'p10 .. p90, µs':>26}{'/ 1 round':>12}",
        ]
        for record in of_case:
            mark = "?" if record.doubtful or of_case[0].doubtful else ""
            lines.append(
                f"  {record.rounds:>6}{record.window_bytes / 2**20:>13,.1f}{record.median_us:>14,.1f}"
                f"{f'{record.p10_us:,.1f} .. {record.p90_us:,.1f}':>26}"
                f"{f'{record.median_us / of_case[0].median_us:.2f}x{mark}':>12}"
            )
        lines.append("")
    if any(record.doubtful for record in records):
        lines.append("?: varies too much to be believed, as on a busy machine; stop other programs and measure again")
    lines.append("microseconds until the last rank has ended; every result was one round's, bit for bit")
    return "\n".join(lines)
