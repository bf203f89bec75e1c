"""A prefill server whose layers are divided among stages: each hands its part of the keys and values over."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.launch.disagg.deployed import Deployed, description, tokens_through
from tests.serving.configurations import stock
from tests.serving.engines import ForkServer
from tests.serving.family_prompts import prompts_of_lengths
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

# So that tokens are demanded to be equal, whoever computes them.
OPTIONS = {"dtype": "float32", "random-seed": 0}
# The longest are several chunks.
PROMPTS = prompts_of_lengths(1, 7, 33, 64, 120, 300, 700)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("groups", [1, 2], ids=["tensor-parallel attention", "data-parallel attention"])
def test_stages_that_prefill_give_the_tokens_of_one_server(family: str, groups: int, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", family)
    with ForkServer(tmp_path) as fork_server, fork_server.start(stock(checkpoint, OPTIONS["dtype"])) as engine:
        expected = [answer.tokens for answer in engine.generate(PROMPTS, NEW_TOKENS)]
    values = description(checkpoint)
    for role in ("prefill", "decode"):
        values[role] |= {"options": OPTIONS, "dp_size": groups}
    values["prefill"]["pp_size"] = 2
    with Deployed(values, tmp_path / "deployment") as deployment:
        deployment.wait_until_serving()
        alone, together = tokens_through(deployment, PROMPTS, NEW_TOKENS)
        assert [state.stage for state in deployment.states("prefill-0")] == [0, 0, 1, 1]
    assert alone == expected
    assert together == expected
