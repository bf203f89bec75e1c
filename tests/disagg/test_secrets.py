"""A real deployment under one secret answers as without; an instance with another one is not paired."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from sglang_ascend_moe.launch.exit_codes import CHECK_FAILED, OK
from tests.disagg.conftest import Expected
from tests.disagg.deployed import READY_SECONDS, Deployed, description
from tests.serving.prompts import NEW_TOKENS

FLAG = "ascend-moe-secret-file"

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


@pytest.mark.parametrize(
    ("decode_secret", "why"),
    [
        pytest.param(b"o" * 32, "has a wrong seal: it was forged or replayed", id="another-secret"),
        pytest.param(None, "sealed is True on the prefill and False on the decode instance", id="no-secret"),
    ],
)
def test_a_decode_instance_with_another_secret_is_not_paired(
    checkpoint: Path, tmp_path: Path, decode_secret: bytes | None, why: str
):
    decode = {} if decode_secret is None else {FLAG: secret_file(tmp_path / "other", decode_secret)}
    values = description(checkpoint, **decode)
    values["prefill"]["options"] |= {FLAG: secret_file(tmp_path / "secret", b"s" * 32)}
    with Deployed(values, tmp_path / "deployment") as deployed:
        failed = deployed.wait_for("failed", READY_SECONDS)
        assert why in failed["why"], failed
        assert deployed.wait_until_ended() == CHECK_FAILED
        assert deployed.left_behind() == []
