"""Starts the ranks of a run, by themselves or under mpirun, and waits for them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.launch.bench.cases import Case, Run
from sglang_ascend_moe.launch.bench.records import Record, read_records
from sglang_ascend_moe.launch.servers.server_process import can_be_interrupted, end_with_parent
from sglang_ascend_moe.serving.launcher import interrupts

RANK_MODULE = "sglang_ascend_moe.launch.bench.rank"
WRONG_RESULT = 4
"""Exit code of a rank if a variant delivered something wrong; a Python process that raises ends with 1."""
_GRACE_S = 5.0


class Outcome(NamedTuple):
    """`exit_code` of the first rank that failed, else 0, None if the run was interrupted; `records` of the cases that
    were finished."""

    exit_code: int | None
    records: list[Record]


def absent_variants(names: list[str]) -> dict[str, str]:
    """Of `names`, those that this installation cannot run, and why."""
    if "mpi" not in names:
        return {}
    if importlib.util.find_spec("mpi4py") is None:
        return {"mpi": "mpi4py is not installed (pip install 'sglang-ascend-moe[bench]')"}
    if shutil.which("mpirun") is None:
        return {"mpi": "mpirun was not found (Debian: apt-get install openmpi-bin)"}
    return {}


def run_ranks(
    cases: list[Case],
    variants: list[str],
    iterations: int,
    case_seconds: float,
    total_seconds: float,
    json: Path | None = None,
) -> Outcome:
    """Measures `cases`, all of as many ranks, with all variants in one run. See `Run` for the arguments.

    `json` receives the records of the cases that are finished, after each of them.
    """
    with tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as name:
        folder = Path(name)
        results = folder / "results"
        run = Run(
            cases=cases, variants=variants, iterations=iterations, case_seconds=case_seconds,
            total_seconds=total_seconds, store=str(folder / "store"),
            results=[str(results), *([str(json.absolute())] if json else [])], absent=absent_variants(variants),
        )  # fmt: skip
        (folder / "run").write_bytes(msgspec.json.encode(run))
        try:
            exit_code = run_processes(_commands(run, folder / "run"))
        except KeyboardInterrupt:
            exit_code = None
        return Outcome(exit_code, read_records(results) if results.exists() else [])


def _commands(run: Run, run_file: Path) -> list[list[str]]:
    size = run.cases[0].ranks
    rank = [sys.executable, "-m", RANK_MODULE, str(run_file)]
    if "mpi" in run.variants and "mpi" not in run.absent:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        # The ranks pin themselves, all variants alike.
        return [["mpirun", "-n", str(size), *root, "--quiet", "--oversubscribe", "--bind-to", "none", *rank, "mpi"]]
    return [[*rank, str(number)] for number in range(size)]


def run_processes(commands: list[list[str]]) -> int:
    """Runs all of them at once. When one fails the others get a moment to end by themselves; all are ended by
    `KeyboardInterrupt`. Returns the exit code of the first that failed, else 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    exit_code = 0
    with ExitStack() as cleanup:
        running = {}
        for command in commands:
            with interrupts.held():
                # A group of its own: Ctrl-C in a terminal is for the command, which ends its ranks.
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_end_with_command
                )
                cleanup.callback(_end, process)
                descriptor = os.pidfd_open(process.pid)
                cleanup.callback(os.close, descriptor)
                running[descriptor] = process
        while running and (ended := wait(list(running), timeout=_GRACE_S if exit_code else None)):
            codes = [running.pop(descriptor).wait() for descriptor in list(running) if descriptor in ended]
            # Of those that have ended since the last look, the others may have failed because one was killed.
            exit_code = exit_code or min(filter(None, codes), default=0)
    return exit_code


def _end_with_command() -> None:
    can_be_interrupted()
    end_with_parent(signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
