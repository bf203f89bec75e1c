"""A server with several processes for HTTP (`--tokenizer-worker-num`): each checks requests, and it ends by name."""

import json
import os
import signal
from pathlib import Path

import pytest
import requests

from sglang_ascend_moe.launch.servers.server_process import ServerProcess, log_tail
from tests.serving.clients import ask, body_of, post
from tests.serving.leftovers import MARK, NOTHING, Surroundings
from tests.serving.prompts import NEW_TOKENS
from tests.serving.titled_processes import titled

READY_SECONDS = 600.0
END_SECONDS = 30.0
PROCESSES = 2

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


def test_every_process_refuses_what_would_end_a_rank_and_a_rank_that_dies_ends_all(
    checkpoint: Path, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    surroundings = Surroundings()
    monkeypatch.setenv(MARK, surroundings.mark)
    arguments = ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", "2", "--ascend-moe"]
    workers = ["--max-running-requests", "8", "--disable-cuda-graph", "--tokenizer-worker-num", str(PROCESSES)]
    with ServerProcess([*arguments, *workers], tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        # The kernel chooses the process for each connection; so many reach all of them.
        asked = prompts[:8] * 3
        answers = {
            (place % 8, *(ask(server.url, prompt, NEW_TOKENS).tokens or ())) for place, prompt in enumerate(asked)
        }
        assert len(answers) == 8
        unknown = json.dumps(body_of([1, 10**6], 4)).encode()
        assert {post(server.url, unknown)[0] for _ in range(24)} == {400}
        assert {
            requests.post(f"{server.url}/slow_down", json={"forward_sleep_time": 1e6}).status_code for _ in range(8)
        } == {400}
        killed = titled(server.pid, "tokenizer_worker")
        assert len(killed) == PROCESSES
        [rank] = titled(server.pid, "EP1")
        os.kill(rank, signal.SIGKILL)
        assert server.wait_until_ended(END_SECONDS) == 1, log_tail(server.log)
        last = server.log.read_text().splitlines()[-1]
        assert last.startswith("The server ends: sglang::scheduler")
        assert f"(process {rank}) was killed, or crashed" in last
    assert surroundings.leftovers() == NOTHING
