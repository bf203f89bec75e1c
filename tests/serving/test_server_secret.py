"""Ranks of a server under one secret serve as without; a rank with another one keeps the server from starting."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerFailed, ServerProcess, log_tail
from tests.serving import faulty_server
from tests.serving.clients import ask
from tests.serving.prompts import NEW_TOKENS

READY_SECONDS = 600.0

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


def secret_file(path: Path, value: bytes) -> str:
    path.write_bytes(value)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def server_arguments(checkpoint: Path, tmp_path: Path) -> list[str]:
    secret = secret_file(tmp_path / "secret", b"s" * 32)
    limits = ["--max-running-requests", "8"]
    server = ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", "2", "--ascend-moe", *limits]
    return [*server, "--ascend-moe-secret-file", secret]


def test_ranks_that_share_a_secret_serve_as_without(server_arguments, tmp_path, prompts, stock_answers):
    expected = [answer.tokens for answer in stock_answers("bfloat16")[:6]]
    with ServerProcess(server_arguments, tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        assert [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in prompts[:6]] == expected


def test_a_rank_with_another_secret_keeps_the_server_from_starting(server_arguments, tmp_path, monkeypatch):
    monkeypatch.setenv(faulty_server.OTHER_SECRET, secret_file(tmp_path / "other", b"o" * 32))
    with ServerProcess(server_arguments, tmp_path / "server.log", module=faulty_server.__name__) as server:
        with pytest.raises(ServerFailed, match="the server ended with exit code 1;"):
            server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        last = server.log.read_text().splitlines()[-1]
        assert "ProtocolMismatch: a control block of rank 1 has a wrong seal" in last, log_tail(server.log)
