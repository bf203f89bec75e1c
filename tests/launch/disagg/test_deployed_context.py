"""A prefill server whose ranks divide texts among them, and a decode server whose ranks do not."""

from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.launch.disagg.deployed import Deployed, description
from tests.serving.configurations import stock
from tests.serving.engines import ForkServer
from tests.serving.family_prompts import DTYPE, prompts_of_lengths
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

PROMPTS = prompts_of_lengths(2, 5, 33, 64, 127, 300)
OPTIONS = {"dtype": DTYPE, "random-seed": 0}
DIVIDED = {"enable-prefill-cp": True, "attn-cp-size": 2, "cp-strategy": "zigzag"}


@pytest.mark.parametrize(
    ("family", "decode"),
    [("deepseek_v3", {}), ("deepseek_v3", {"dp_size": 2}), ("qwen3_moe", {"dp_size": 2}), ("qwen3_moe", {})],
    ids=["latent, tp2", "latent, dp2", "grouped, dp2", "grouped, tp2"],
)
def test_a_deployment_gives_the_tokens_of_one_server(family: str, decode: dict[str, Any], tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "model", family)
    with ForkServer(tmp_path) as fork_server, fork_server.start(stock(checkpoint, DTYPE)) as engine:
        expected = [answer.tokens for answer in engine.generate(PROMPTS, NEW_TOKENS)]
    values = description(checkpoint)
    values["prefill"] |= {"options": OPTIONS | DIVIDED}
    values["decode"] |= {"options": OPTIONS, **decode}
    with Deployed(values, tmp_path / "deployment") as deployment:
        deployment.wait_until_serving()
        client = GenerateClient(deployment.url("router"), timeout=60)
        assert [client.ask(prompt, NEW_TOKENS).answer.tokens for prompt in PROMPTS] == expected
