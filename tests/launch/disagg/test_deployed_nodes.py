"""A real deployment of a prefill and a decode instance of two nodes each answers as one server, and ends together."""

import os
import signal
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK
from tests.launch.disagg.conftest import Expected
from tests.launch.disagg.deployed import Deployed, description
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

FAILED_SECONDS = 15.0


@pytest.mark.parametrize("end", ["Ctrl-C", "decode-0-node-0", "decode-0-node-1", "prefill-0-node-1"])
def test_instances_of_two_nodes_answer_bit_for_bit_as_one_server_and_end_together(
    checkpoint: Path, expected: Expected, tmp_path: Path, end: str
):
    """end: Ctrl-C, or the launcher that is killed."""
    values = description(checkpoint)
    values |= {role: {**values[role], "nodes": 2} for role in ("prefill", "decode")}
    with Deployed(values, tmp_path / "deployment") as deployed:
        deployed.wait_until_serving()
        client = GenerateClient(deployed.url("router"), timeout=60)
        assert [client.ask(prompt, NEW_TOKENS).answer for prompt in expected.prompts] == expected.cold
        if end == "Ctrl-C":
            deployed.interrupt()
        else:
            os.kill(deployed.started[end]["pid"], signal.SIGKILL)
            assert deployed.wait_for("failed", FAILED_SECONDS)["name"] == end
        assert deployed.wait_until_ended() == (OK if end == "Ctrl-C" else CHECK_FAILED)
        stopped = [event for event in deployed.events if event["event"] == "stopped"]
        assert [event["name"] for event in stopped if not event["by_itself"] and event["name"] != end] == []
        assert deployed.left_behind() == []
