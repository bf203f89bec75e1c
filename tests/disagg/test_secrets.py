"""A real deployment under one secret answers as one server without."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from sglang_ascend_moe.launch.exit_codes import OK
from tests.disagg.conftest import Expected
from tests.disagg.deployed import Deployed, description
from tests.serving.prompts import NEW_TOKENS

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
