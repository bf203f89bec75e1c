"""A deployment on emulated NPUs: keys and values go from one to another by memfabric. No NPU has run this."""

from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.launch.comparison import TOLERANCES, compare
from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from tests.launch.disagg.conftest import Expected
from tests.launch.disagg.deployed import Deployed, description
from tests.serving.configurations import stock
from tests.serving.draft_models import PROMPTS, write_drafted
from tests.serving.engines import ForkServer
from tests.serving.prompts import NEW_TOKENS

pytestmark = pytest.mark.timeout(1200)

PART_OF_DIE = 0.5
START_SECONDS = 600.0


def on_part_of_a_die(values: dict[str, Any], ranks: int = 2, **options: Any) -> dict[str, Any]:
    """The description with `ranks` and options for both roles, so that two servers share each die."""
    for role in ("prefill", "decode"):
        given = {**values[role]["options"], **options, "mem-fraction-static": PART_OF_DIE}
        values[role] = {**values[role], "tp_size": ranks, "options": given}
    return values


@pytest.mark.parametrize(
    ("ranks", "every"), [pytest.param(1, 3, id="one-rank"), pytest.param(2, 1, id="tp2", marks=pytest.mark.nightly)]
)
def test_a_deployment_answers_what_one_server_answers(
    checkpoint: Path, expected: Expected, npu_variables: dict[str, str], tmp_path: Path, ranks: int, every: int
):
    """`ranks` of each server; one prompt out of `every` is asked."""
    values = on_part_of_a_die(description(checkpoint, **{"cuda-graph-bs-decode": 8}), ranks)
    with Deployed(values, tmp_path / "deployment", "--device", "npu", variables=npu_variables) as deployment:
        deployment.wait_for("serving", START_SECONDS)
        client = GenerateClient(deployment.url("router"), timeout=60)
        found = [client.ask(prompt, NEW_TOKENS).answer for prompt in expected.prompts[::every]]
        replays = [state.graphs.replays for state in deployment.states("decode-0")]
    outcomes = [compare(*pair, TOLERANCES["bfloat16"]) for pair in zip(expected.cold[::every], found, strict=True)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert len(replays) == ranks
    assert min(replays) >= len(found) * (NEW_TOKENS - 1)


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "algorithm"), [("qwen3_moe", "EAGLE3"), ("deepseek_v3", "NEXTN")])
def test_one_that_drafts_answers_what_one_server_without_drafts_answers(
    family: str, algorithm: str, npu_variables: dict[str, str], tmp_path: Path
):
    checkpoints = write_drafted(tmp_path / "checkpoints", family)
    with ForkServer(tmp_path) as fork_server, fork_server.start(stock(checkpoints.model, "bfloat16")) as engine:
        expected = engine.generate(PROMPTS, NEW_TOKENS)
    drafts = {
        "speculative-algorithm": algorithm,
        "speculative-num-steps": 2,
        "speculative-eagle-topk": 1,
        "speculative-num-draft-tokens": 3,
    }
    if checkpoints.draft is not None:
        drafts["speculative-draft-model-path"] = str(checkpoints.draft)
    values = on_part_of_a_die(description(checkpoints.model, **{"cuda-graph-bs-decode": 8}), **drafts)
    with Deployed(values, tmp_path / "deployment", "--device", "npu", variables=npu_variables) as deployment:
        deployment.wait_for("serving", START_SECONDS)
        client = GenerateClient(deployment.url("router"), timeout=60)
        found = [client.ask(prompt, NEW_TOKENS).answer for prompt in PROMPTS]
        accepted = deployment.internal_state("decode-0")["avg_spec_accept_length"]
    outcomes = [compare(*pair, TOLERANCES["bfloat16"]) for pair in zip(expected, found, strict=True)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert accepted > 1.5
