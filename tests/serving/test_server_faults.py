"""A rank that is killed, stopped or raises under load ends its server, which says so; and Ctrl-C at any moment."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerProcess, log_tail
from sglang_ascend_moe.serving.stages import Stage
from tests.serving import faulty_server
from tests.serving.clients import Traffic, ask
from tests.serving.leftovers import NOTHING
from tests.serving.prompts import NEW_TOKENS
from tests.serving.titled_processes import titled

READY_SECONDS = 600.0
END_SECONDS = 15.0
"""In which a server has to be gone after a fault; with a stopped rank, ten of them are patience."""
ATTENTION = {"tp": [], "dp-attention": ["--dp-size", "2", "--enable-dp-attention"]}
GRAPHS = {"graphs": ["--cuda-graph-bs-decode", "4", "8"], "eager": ["--disable-cuda-graph"]}
ON_NPU = ["--device", "npu", "--dtype", "bfloat16", "--mem-fraction-static", "0.5"]
FAULTS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "raising": None}
CAUSES = {
    "killed": "(process {pid}) was killed, or crashed",
    "stopped": "(process {pid}) has been stopped for 10 s (SIGSTOP)",
    "raising": f"(process {{pid}}) raised ValueError: {faulty_server.MESSAGE}",
}

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


@pytest.fixture
def server_arguments(checkpoint: Path) -> list[str]:
    limits = ["--max-running-requests", "8"]
    return ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", "2", "--ascend-moe", *limits]


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(faulty_server.SIGN, str(tmp_path / "raise"))
    return tmp_path / "raise"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_rank_that_fails_under_load_ends_the_server_by_name(
    surroundings, server_arguments, prompts, sign, tmp_path, request, attention, graphs, fault
):
    arguments = [*server_arguments, *ATTENTION[attention], *GRAPHS[graphs]]
    seconds = fail_under_load(arguments, prompts[:8], fault, sign, tmp_path / "server.log")
    request.node.user_properties.append(("seconds to the end", f"{seconds:.1f}"))
    assert surroundings.leftovers() == NOTHING


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_fails_while_an_emulated_npu_replays_ends_the_server_by_name(
    surroundings, server_arguments, npu_variables, prompts, sign, tmp_path, monkeypatch, fault
):
    for name, value in npu_variables.items():
        monkeypatch.setenv(name, value)
    arguments = [*server_arguments, *ON_NPU, *GRAPHS["graphs"], "--ascend-moe-require-graphs"]
    fail_under_load(arguments, prompts[:8], fault, sign, tmp_path / "server.log")
    assert surroundings.leftovers() == NOTHING


def fail_under_load(arguments: list[str], asked: list[list[int]], fault: str, sign: Path, log: Path) -> float:
    """Start a server, let its rank 1 fail while it answers, and see it end; returns the seconds that this took."""
    with ServerProcess(arguments, log, module=faulty_server.__name__) as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        expected = [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in asked]
        with Traffic(server.url, asked, NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            [pid] = titled(server.pid, "scheduler", "EP1")
            if fault == "raising":
                sign.touch()
            else:
                os.kill(pid, FAULTS[fault])
            before = server.seconds
            code = server.wait_until_ended(END_SECONDS)
        seconds = server.seconds - before
        last = server.log.read_text().splitlines()[-1]
        assert code == 1, log_tail(server.log)
        assert last.startswith("The server ends: sglang::scheduler")
        assert CAUSES[fault].format(pid=pid) in last
        assert [place for place, said in traffic.answers if said.tokens not in (None, expected[place])] == []
    return seconds


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_restart_after_a_fault_serves_at_the_same_address(
    surroundings, server_arguments, prompts, tmp_path, attention
):
    arguments = [*server_arguments, *ATTENTION[attention]]
    with ServerProcess(arguments, tmp_path / "first.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        expected = [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in prompts[:4]]
        port = server.port
        [pid] = titled(server.pid, "scheduler", "EP1")
        os.kill(pid, signal.SIGKILL)
        server.wait_until_ended(END_SECONDS)
    with ServerProcess(arguments, tmp_path / "second.log", port=port) as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        assert [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in prompts[:4]] == expected
    assert surroundings.leftovers() == NOTHING


@pytest.mark.parametrize("moment", [*list(Stage)[1:], "under load"], ids=lambda moment: getattr(moment, "name", moment))
def test_ctrl_c_at_any_moment_leaves_nothing(surroundings, server_arguments, prompts, tmp_path, moment):
    with ServerProcess(server_arguments, tmp_path / "server.log") as server:
        if moment == "under load":
            server.wait_until_ready(READY_SECONDS, lambda _progress: None)
            with Traffic(server.url, prompts[:8], NEW_TOKENS) as traffic:
                traffic.wait_for_answer()
                server.interrupt()
                server.wait_until_ended(END_SECONDS)
        else:
            order = list(Stage)
            while order.index(server.stage) < order.index(moment):
                assert server.exit_code is None, log_tail(server.log)
                threading.Event().wait(0.05)
            server.interrupt()
            server.wait_until_ended(60)
    assert server.ended_by_itself, log_tail(server.log)
    assert surroundings.leftovers() == NOTHING
