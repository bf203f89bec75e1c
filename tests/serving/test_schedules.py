"""Every schedule, a window that makes prefill take several rounds, and decode without graphs compute the same bits."""

import pytest

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes
from tests.serving.configurations import MAX_RUNNING_REQUESTS, ours
from tests.serving.prompts import NEW_TOKENS

RANKS = 2


def smallest_window() -> int:
    """Bytes of a window that just holds the largest decode batch."""
    sizes = TinySizes()
    return Exchange.memory(
        ranks=RANKS,
        num_experts=sizes.experts,
        hidden=sizes.hidden,
        max_tokens=MAX_RUNNING_REQUESTS // RANKS,
        topk=sizes.topk,
        distinct_topk=True,
        verify=True,
    ).total


@pytest.fixture(scope="module")
def auto_answers(fork_server, checkpoint, prompts):
    """Answers with `--ascend-moe-schedule auto`, the window of its default size, and decode in graphs."""
    with fork_server.start(ours(checkpoint, "bfloat16", ascend_moe_require_graphs=True)) as engine:
        return engine.generate(prompts, NEW_TOKENS, together=True)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"ascend_moe_schedule": "decode"}, id="decode"),
        pytest.param({"ascend_moe_schedule": "prefill"}, id="prefill", marks=pytest.mark.nightly),
        pytest.param({"ascend_moe_schedule": "collective"}, id="collective", marks=pytest.mark.nightly),
        pytest.param({"ascend_moe_window_bytes": smallest_window()}, id="auto-in-rounds"),
        pytest.param({"disable_cuda_graph": True}, id="without-graphs", marks=pytest.mark.nightly),
    ],
)
def test_tokens_and_logprobs_are_those_of_auto_bit_for_bit(fork_server, checkpoint, prompts, auto_answers, arguments):
    with fork_server.start(ours(checkpoint, "bfloat16", **arguments)) as engine:
        assert engine.generate(prompts, NEW_TOKENS, together=True) == auto_answers
