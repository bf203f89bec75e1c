"""Whole engines on emulated NPUs: SGLang's unmodified NPU backend, from flag to tokens. No NPU has run this."""

from typing import Any

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.serving.sglang_release import TESTED, installed
from tests.serving.configurations import PARALLEL, ours_on_npu, stock_on_npu
from tests.serving.prompts import NEW_TOKENS

pytestmark = pytest.mark.timeout(600)

DTYPE = "bfloat16"
GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [4, 16], "ascend_moe_require_graphs": True}
SETUPS = {
    "tp2-ep2": PARALLEL["tp2-ep2"],
    "tp2-ep2 in graphs": {**PARALLEL["tp2-ep2"], **GRAPHS},
    "dp2-attention-ep2": PARALLEL["dp2-attention-ep2"],
    "dp2-attention-ep2 in graphs": {**PARALLEL["dp2-attention-ep2"], **GRAPHS},
}
SHORT = "tp2-ep2 in graphs"
"""What CI runs."""


@pytest.fixture(scope="session")
def expected(request: pytest.FixtureRequest, npu_fork_server, checkpoint, prompts) -> list[Answer]:
    """Stock SGLang's answers on a host or, of a release that serves none, on an emulated NPU."""
    if installed() in TESTED:
        return request.getfixturevalue("stock_answers")(DTYPE)
    with npu_fork_server.start(stock_on_npu(checkpoint)) as engine:
        return engine.generate(prompts, NEW_TOKENS)


@pytest.mark.nightly
def test_stock_sglang_answers_as_on_the_host(npu_fork_server, checkpoint, prompts, stock_answers, compare_all):
    with npu_fork_server.start(stock_on_npu(checkpoint)) as engine:
        outcomes = compare_all(engine, prompts, stock_answers(DTYPE), DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(arguments, id=name, marks=[] if name == SHORT else pytest.mark.nightly)
        for name, arguments in SETUPS.items()
    ],
)
def test_answers_are_those_of_stock_sglang(
    npu_fork_server, checkpoint, prompts, expected, compare_all, arguments: dict[str, Any]
):
    with npu_fork_server.start(ours_on_npu(checkpoint, enable_metrics=True, **arguments)) as engine:
        outcomes = compare_all(engine, prompts, expected, DTYPE)
        replays = [state.graphs.replays for states in engine.inspect().states for state in states]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {count > 0 for count in replays} == {"ascend_moe_require_graphs" in arguments}
