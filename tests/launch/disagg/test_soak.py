"""A deployment whose instances share a secret, under traffic that comes and leaves: right answers, and no growth."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers.server_process import group_members
from tests.launch.disagg.deployed import Deployed, description
from tests.serving.clients import ask
from tests.serving.prompts import NEW_TOKENS, chosen_prompts
from tests.soak.steady import require_steady


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_two_thousand_requests_leave_a_deployment_as_it_was(request, checkpoint: Path, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"shared by all instances of this test")
    secret.chmod(0o600)
    prompts = chosen_prompts()[:8]
    with Deployed({**description(checkpoint), "secret_file": str(secret)}, tmp_path / "deployment") as deployed:
        deployed.wait_until_serving()
        url = deployed.url("router")
        expected = [ask(url, prompt, NEW_TOKENS).tokens for prompt in prompts]
        processes = [pid for event in deployed.started.values() for pid in group_members(event["pid"])]
        require_steady(request, url, prompts, expected, processes, requests=2000, rounds=10)
        deployed.interrupt()
        assert deployed.wait_until_ended() == 0
        assert deployed.left_behind() == []
