"""Whole engines on emulated NPUs: SGLang's unmodified NPU backend, from flag to tokens. No NPU has run this."""

from typing import Any

import pytest

from tests.serving.configurations import PARALLEL, ours_on_npu, stock_on_npu

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
def test_answers_are_those_of_the_host(
    npu_fork_server, checkpoint, prompts, stock_answers, compare_all, arguments: dict[str, Any]
):
    with npu_fork_server.start(ours_on_npu(checkpoint, enable_metrics=True, **arguments)) as engine:
        outcomes = compare_all(engine, prompts, stock_answers(DTYPE), DTYPE)
        replays = [state.graphs.replays for states in engine.inspect().states for state in states]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {count > 0 for count in replays} == {"ascend_moe_require_graphs" in arguments}
