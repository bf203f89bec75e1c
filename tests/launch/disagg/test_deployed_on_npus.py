"""A deployment on emulated NPUs: keys and values go from one to another by memfabric. No NPU has run this."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.comparison import TOLERANCES, compare
from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from tests.launch.disagg.conftest import Expected
from tests.launch.disagg.deployed import Deployed, description
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]

PART_OF_DIE = 0.5
START_SECONDS = 600.0


def test_a_deployment_answers_what_one_server_answers(
    checkpoint: Path, expected: Expected, npu_variables: dict[str, str], tmp_path: Path
):
    values = description(checkpoint, **{"cuda-graph-bs-decode": 8})
    for role in ("prefill", "decode"):
        values[role]["options"] = {**values[role]["options"], "mem-fraction-static": PART_OF_DIE}
    with Deployed(values, tmp_path / "deployment", "--device", "npu", variables=npu_variables) as deployment:
        deployment.wait_for("serving", START_SECONDS)
        client = GenerateClient(deployment.url("router"), timeout=60)
        found = [client.ask(prompt, NEW_TOKENS).answer for prompt in expected.prompts]
    outcomes = [compare(*pair, TOLERANCES["bfloat16"]) for pair in zip(expected.cold, found, strict=True)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
