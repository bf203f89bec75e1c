"""All ranks of a host share its memory: servers fit beside each other, and what cannot fit is refused with numbers."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from sglang_ascend_moe.launch.servers.server_process import ServerProcess, group_members
from sglang_ascend_moe.serving.host.memory_share import GIB
from tests.serving.configurations import ours
from tests.serving.control_group import ControlGroup
from tests.serving.engines import EngineFailure
from tests.serving.prompts import NEW_TOKENS

COMMAND = [sys.executable, "-m", "sglang_ascend_moe.launch.main"]


def division(log: Path) -> str:
    """The line of a server about its memory."""
    (line,) = re.findall(r"\bMemory: .*", log.read_text())
    return line


def test_an_engine_that_is_given_too_little_is_refused_with_the_numbers_and_the_flag(fork_server, checkpoint):
    message = (
        r"Unsupported: .* does not fit: 2 ranks need at least .*--ascend-moe-host-memory leaves 64 MiB\."
        r" Raise --ascend-moe-host-memory by"
    )
    with pytest.raises(EngineFailure, match=message):
        fork_server.start(ours(checkpoint, "bfloat16", ascend_moe_host_memory="64MiB"))


def test_ranks_take_no_memory_for_keys_and_values_until_these_are_used(fork_server, checkpoint, prompts):
    many = {"max_running_requests": 2048, "max_total_tokens": None, "disable_cuda_graph": True}
    with fork_server.start(ours(checkpoint, "bfloat16", **many)) as engine:
        engine.generate(prompts[:1], NEW_TOKENS)
        assert "keys and values 4.0 GiB" in division(engine.log)
        assert "as many as 2048 requests of 2048 tokens can use" in division(engine.log)
        private = max(psutil.Process(pid).memory_full_info().uss for pid in group_members(engine.pid))
    assert private < 2 * GIB


def test_an_engine_that_is_given_little_has_fewer_tokens_and_gives_the_same_answers(
    fork_server, checkpoint, prompts, stock_answers, compare_all
):
    config = ours(
        checkpoint, "bfloat16", ascend_moe_host_memory=2 * GIB, max_running_requests=1024, max_total_tokens=None
    )
    expected = stock_answers("bfloat16")
    with fork_server.start(config) as engine:
        compare_all(engine, prompts[:4], expected[:4], "bfloat16")
        assert "all that is left" in division(engine.log)
        assert "--ascend-moe-host-memory leaves" in division(engine.log)


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    with ControlGroup(8 * GIB) as made:
        yield made


def ask(server: ServerProcess) -> list[int]:
    """The ids of a greedy answer."""
    body = {"text": "The sea", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    answer = requests.post(f"{server.url}/generate", json=body, timeout=120)
    answer.raise_for_status()
    return answer.json()["output_ids"]


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_server_in_a_small_container_serves_without_any_limit(group, checkpoint, tmp_path, ranks):
    arguments = ["serve", str(checkpoint), "--tp-size", str(ranks)]
    with ServerProcess(arguments, tmp_path / "log", module="sglang_ascend_moe.launch.main") as server:
        group.add(server.pid)
        server.wait_until_ready(900, lambda _: None)
        assert len(ask(server)) == 8
        assert "left on the container (control group)" in division(server.log)
    assert group.killed == 0


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_deployment_in_a_small_container_serves_without_any_limit(group, checkpoint, tmp_path):
    command = [*COMMAND, "disagg", "up", "--model-path", str(checkpoint), "--tp-size", "2", "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--logs", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: group.add(os.getpid()),
    ) as deployment:
        try:
            events = iter(deployment.stdout)
            assert any('"serving"' in line for line in events)
        finally:
            deployment.send_signal(signal.SIGINT)
        assert deployment.wait(120) == 0
    assert group.killed == 0
    assert all("leaves" in division(log) for log in tmp_path.glob("*-0.log"))


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_servers_that_start_together_both_serve(checkpoint, tmp_path):
    arguments = ["serve", str(checkpoint), "--tp-size", "2"]
    module = "sglang_ascend_moe.launch.main"
    with (
        ServerProcess(arguments, tmp_path / "first.log", module=module) as first,
        ServerProcess(arguments, tmp_path / "second.log", module=module) as second,
    ):
        for server in (first, second):
            server.wait_until_ready(900, lambda _: None)
        assert ask(first) == ask(second)
    assert any("reserved by other servers" in division(tmp_path / name) for name in ("first.log", "second.log"))
