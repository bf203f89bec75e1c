"""A real deployment under one secret answers as one server without; instances with different ones do not serve."""

import contextlib
import http.client
import json
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.launch.disagg.deployment import Deployment
from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, server_flags
from sglang_ascend_moe.launch.servers.server_process import ServerProcess, free_port, log_tail
from sglang_ascend_moe.serving.launcher.exit_codes import OK
from tests.launch.disagg.conftest import Expected
from tests.launch.disagg.deployed import END_SECONDS, READY_SECONDS, Deployed, description
from tests.serving.clients import body_of
from tests.serving.prompts import NEW_TOKENS, chosen_prompts

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


def secret_file(path: Path, value: bytes) -> str:
    path.write_bytes(value)
    path.chmod(0o600)
    return str(path)


def test_instances_that_share_a_secret_are_bit_identical_to_one_server(
    checkpoint: Path, expected: Expected, tmp_path: Path
):
    values = {**description(checkpoint), "secret_file": secret_file(tmp_path / "secret", b"s" * 32)}
    with Deployed(values, tmp_path / "deployment") as deployed:
        deployed.wait_until_serving()
        client = GenerateClient(deployed.url("router"), timeout=60)
        assert [client.ask(prompt, NEW_TOKENS).answer for prompt in expected.prompts] == expected.cold
        deployed.interrupt()
        assert deployed.wait_until_ended() == OK
        assert deployed.left_behind() == []


def test_a_decode_instance_with_another_secret_ends_by_name(checkpoint: Path, tmp_path: Path):
    """As on two hosts, where the same path leads to different files. The test stands in for the router."""
    deployment = msgspec.convert(description(checkpoint), Deployment)
    bootstrap = NodePlace(free_port())
    prefill, decode = (
        ServerProcess(
            server_flags(
                msgspec.structs.replace(deployment, secret_file=secret_file(tmp_path / f"{role} secret", value)),
                role,
                "host",
                bootstrap,
            ),
            tmp_path / f"{role}.log",
        )
        for role, value in (("prefill", b"p" * 32), ("decode", b"d" * 32))
    )
    with prefill, decode:
        for server in (prefill, decode):
            server.wait_until_ready(READY_SECONDS, lambda _: None)
        room = {"bootstrap_host": "127.0.0.1", "bootstrap_port": bootstrap.bootstrap_port, "bootstrap_room": 1}
        body = json.dumps(body_of(chosen_prompts()[0], NEW_TOKENS) | room)
        with contextlib.ExitStack() as connections:
            for server in (prefill, decode):
                connection = http.client.HTTPConnection("127.0.0.1", server.port)
                connections.callback(connection.close)
                connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            assert decode.wait_until_ended(END_SECONDS) == 1
        assert "holds another secret there" in decode.log.read_text().splitlines()[-1], log_tail(decode.log)
        assert prefill.answers()
        assert prefill.stop()
