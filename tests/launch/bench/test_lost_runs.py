"""A run that ends half-way leaves what it has measured, and says what it has not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ascend_moe.launch import main as command
from sglang_ascend_moe.launch.bench import rank_processes
from sglang_ascend_moe.launch.bench.records import read_records
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT
from tests.launch.bench.dying_rank import LOST_TOKENS, SIGNAL
from tests.packaging.source_tree import ROOT

INTERRUPTED = 130
NIGHTLY = pytest.mark.nightly
RUN = """
import sys
from sglang_ascend_moe.launch import main
from sglang_ascend_moe.launch.bench import rank_processes
rank_processes.RANK_MODULE = "tests.launch.bench.dying_rank"
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "against", "code", "said"),
    [
        pytest.param(signal.SIGKILL, "relay-free,memcpy", CANNOT, "ended by SIGKILL", id="killed"),
        pytest.param(
            signal.SIGKILL, "relay-free,mpi", CANNOT, "ended by SIGKILL", id="killed under mpirun", marks=NIGHTLY
        ),
        pytest.param(signal.SIGINT, "relay-free,memcpy", INTERRUPTED, "interrupted", id="Ctrl-C", marks=NIGHTLY),
        pytest.param(signal.SIGTERM, "relay-free,memcpy", INTERRUPTED, "interrupted", id="SIGTERM", marks=NIGHTLY),
    ],
)
def test_cases_that_were_finished_are_kept(tmp_path: Path, number: int, against: str, code: int, said: str):
    path = tmp_path / "run.json"
    path.write_text("of an earlier run")
    shape = ["--hidden", "64", "--experts", "8", "--topk", "3", "--iters", "3", "--tokens", f"6,{LOST_TOKENS},7"]
    finished = subprocess.run(
        [sys.executable, "-c", RUN, "bench", "exchange", *shape, "--against", against, "--json", str(path)],
        env={**os.environ, SIGNAL: str(int(number))}, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert finished.returncode == code, finished.stderr
    assert said in finished.stderr
    assert f"case 2 of 3 (decode, 2 ranks, {LOST_TOKENS} tokens" in finished.stderr
    assert f"{path} holds the 1 case before it" in finished.stderr
    records = read_records(path)
    assert [(record.op, record.variant, record.tokens) for record in records] == [
        (op, variant, 6) for variant in against.split(",") for op in ("dispatch", "combine")
    ]
    assert all(record.checked for record in records)
    # What was measured is shown, too.
    assert "6 tokens" in finished.stdout
    assert [path] == list(tmp_path.iterdir())


def test_of_ranks_that_have_failed_when_they_are_looked_at_the_killed_one_counts(monkeypatch: pytest.MonkeyPatch):
    def wait_for_all(running: list[int], timeout: float | None) -> list[int]:
        assert all(select.select([one], [], [], 60)[0] for one in running), timeout
        return running

    monkeypatch.setattr(rank_processes, "wait", wait_for_all)
    commands = [["sh", "-c", how] for how in ("exit 0", "exit 1", "kill -KILL $$")]
    assert rank_processes.run_processes(commands) == -signal.SIGKILL
    assert rank_processes.run_processes(commands[:2]) == 1
    assert rank_processes.run_processes(commands[:1]) == 0


@NIGHTLY
def test_a_run_without_a_finished_case_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(rank_processes, "RANK_MODULE", "tests.launch.bench.dying_rank")
    monkeypatch.setenv(SIGNAL, str(int(signal.SIGKILL)))
    monkeypatch.chdir(ROOT)
    path = tmp_path / "run.json"
    path.write_text("of an earlier run")
    shape = ["--hidden", "64", "--experts", "8", "--topk", "3", "--iters", "3", "--tokens", str(LOST_TOKENS)]
    assert command.main(["bench", "exchange", *shape, "--against", "relay-free", "--json", str(path)]) == CANNOT
    assert path.read_text() == "of an earlier run"
    assert "case 1 of 1" in capfd.readouterr().err
