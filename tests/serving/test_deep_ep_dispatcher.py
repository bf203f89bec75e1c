"""SGLang's own DeepEP dispatcher as a client of our Buffer gives the tokens of `--ascend-moe`."""

import pytest

from tests.serving.configurations import ours, stock
from tests.serving.prompts import NEW_TOKENS

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def answers_of_ours(fork_server, checkpoint, prompts):
    with fork_server.start(ours(checkpoint, "bfloat16", disable_cuda_graph=True)) as engine:
        return engine.generate(prompts, NEW_TOKENS)


@pytest.mark.parametrize("mode", ["low_latency", "normal", "auto"])
def test_tokens_are_those_of_ascend_moe(fork_server, checkpoint, prompts, answers_of_ours, mode):
    config = stock(
        checkpoint,
        "bfloat16",
        tp_size=2,
        moe_a2a_backend="deepep",
        deepep_mode=mode,
        deepep_dispatcher_output_dtype="bf16",
        disable_cuda_graph=True,
    )
    limits = {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": "512"}
    with fork_server.start(config._replace(environment=limits)) as engine:
        answers = engine.generate(prompts, NEW_TOKENS)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in answers_of_ours]
