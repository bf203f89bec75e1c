"""However many ranks fail, in whatever order: the server ends with exit code 1, and its last line names the first."""

import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from tests.packaging.source_tree import ROOT
from tests.serving.launcher.failing_together import CULPRIT, KINDS, SHUT_DOWN, Ended

COUNTS = {kind: 25 if kind == "all raise" else 5 for kind in KINDS}
SAID = {
    "one raises": "sglang::scheduler_TP1 (process {pid}) raised ValueError: rank 1 failed",
    "one is killed": "sglang::scheduler_TP1 (process {pid}) was killed, or crashed",
    "one is killed without a title": "sglang::scheduler (process {pid}) was killed, or crashed",
}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """How launchers ended, by kind."""
    words = [word for kind, count in COUNTS.items() for word in (kind, str(count))]
    module = "tests.serving.launcher.failing_together"
    command = [sys.executable, "-m", module, str(tmp_path_factory.mktemp("logs")), *words]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = [msgspec.json.decode(line, type=Ended) for line in finished.stdout.splitlines() if line.startswith("{")]
    return {kind: [ended for ended in found if ended.kind == kind] for kind in KINDS}


@pytest.mark.parametrize("kind", SAID)
def test_the_rank_that_failed_first_is_named(ends: dict[str, list[Ended]], kind: str):
    wrong = [
        (ended.exit_code, ended.last)
        for ended in ends[kind]
        if (ended.exit_code, ended.last) != (1, f"The server ends: {SAID[kind].format(pid=ended.ranks[CULPRIT])}")
    ]
    assert (wrong, len(ends[kind])) == ([], COUNTS[kind])


def test_when_all_fail_together_one_of_them_is_named(ends: dict[str, list[Ended]]):
    expected = [
        [
            f"The server ends: sglang::scheduler_TP{rank} (process {pid}) raised ValueError: rank {rank} failed"
            for rank, pid in enumerate(ended.ranks)
        ]
        for ended in ends["all raise"]
    ]
    outcomes = Counter(
        (ended.exit_code, ended.last in lines) for ended, lines in zip(ends["all raise"], expected, strict=True)
    )
    assert outcomes == {(1, True): COUNTS["all raise"]}


def test_ranks_that_fail_because_an_engine_is_shut_down_end_nothing(ends: dict[str, list[Ended]]):
    """It kills them one after the other, and the others notice."""
    assert Counter((ended.exit_code, ended.last) for ended in ends[SHUT_DOWN]) == {(0, SHUT_DOWN): COUNTS[SHUT_DOWN]}
