"""Servers started as users start them: the demo, Ctrl-C, and the death of a rank under traffic."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_ascend_moe.launch import doctor
from sglang_ascend_moe.launch.exit_codes import OK
from sglang_ascend_moe.launch.server_process import ServerProcess, group_members, log_tail
from tests.serving.leftovers import MARK, NOTHING, leftovers, shared_memory_names

DEMO = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "demo"]
READY_SECONDS = 600.0
LEFTOVER_SECONDS = 60.0

pytestmark = pytest.mark.timeout(900)


class Surroundings:
    """The mark that every process of a test carries, and the names in /dev/shm before it."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._names_before = shared_memory_names()

    def leftovers(self):
        return leftovers(self.mark, self._names_before, LEFTOVER_SECONDS)


@pytest.fixture
def surroundings(monkeypatch) -> Surroundings:
    marked = Surroundings()
    monkeypatch.setenv(MARK, marked.mark)
    return marked


def test_the_demo_ends_with_equal_tokens_and_leaves_nothing(surroundings):
    finished = subprocess.run(DEMO, capture_output=True, text=True, timeout=850)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "EQUAL: 128 tokens" in finished.stdout
    assert "had to be killed" not in finished.stdout
    assert surroundings.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("signal_number", "exit_code"),
    [pytest.param(signal.SIGINT, 1, id="ctrl-c"), pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed")],
)
def test_a_demo_that_is_ended_leaves_no_process(surroundings, tmp_path, signal_number, exit_code):
    command = [*DEMO, "--keep", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as demo:
        for line in demo.stdout:
            if "starting ranks" in line or "connecting ranks" in line:
                break
        demo.send_signal(signal_number)
        assert demo.wait(60) == exit_code
    assert surroundings.leftovers() == NOTHING


def test_a_killed_rank_ends_the_server_and_leaves_nothing(surroundings, checkpoint, tmp_path, capsys):
    arguments = ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", "2", "--ascend-moe"]
    limits = ["--max-running-requests", "8", "--max-total-tokens", "4096"]
    with ServerProcess([*arguments, *limits, "--enable-metrics"], tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        tells_its_state(server, capsys)
        traffic = stream_tokens(server, new_tokens=1500)
        next(traffic)
        os.kill(rank_process(server, "TP1"), signal.SIGKILL)
        assert server.wait_until_ended(60) != 0, log_tail(server.log)
        assert surroundings.leftovers() == NOTHING


def heed_interrupts() -> None:
    """A job in the background of a shell ignores SIGINT, and so would the demo, if the tests are one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tells_its_state(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor and Prometheus are told of both ranks, over HTTP."""
    assert doctor.main(["--url", server.url]) == OK
    assert "2 ranks, 2 of them heard" in capsys.readouterr().out
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as response:
        metrics = response.read().decode()
    assert [rank for rank in (0, 1) if f'ascend_moe_rounds_total{{moe_ep_rank="{rank}"' not in metrics] == []


def stream_tokens(server: ServerProcess, new_tokens: int) -> Iterator[dict]:
    """Ask for `new_tokens` tokens and yield every piece of the answer as it comes."""
    body = {
        "input_ids": [5, 6, 7],
        "sampling_params": {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
        "stream": True,
    }
    request = urllib.request.Request(
        f"{server.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def rank_process(server: ServerProcess, rank: str) -> int:
    """The pid of the scheduler of one rank, known by the title that SGLang gives it."""
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in group_members(server.pid)}
    [pid] = [pid for pid, title in titles.items() if b"sglang::scheduler" in title and rank.encode() in title]
    return pid
