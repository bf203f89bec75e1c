"""Whole engines on emulated NPUs: SGLang's unmodified NPU backend, from flag to tokens. No NPU has run this."""

from collections import Counter
from typing import Any

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from sglang_ascend_moe.launch.trace.timeline import Timeline, read_timelines
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.serving.sglang_release import TESTED, installed
from tests.exchange.control.test_trace_file import CALLED
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
PROFILED_TOKENS = 4


def check_timeline(timeline: Timeline) -> None:
    """Every rank has left every step, of layer after layer, and what was placed has come to some rank."""
    assert timeline.missing == []
    assert set(timeline.lost.values()) == {0}
    rows: dict[Step, Counter[int]] = {Step.PLACE: Counter(), Step.ARRIVALS: Counter()}
    for spans in timeline.spans.values():
        of_rows = [span for span in spans if span.kind != Kind.PLAN]
        assert [span.step for span in of_rows] == CALLED * (len(of_rows) // len(CALLED))
        # Before the first request a capture has run some exchanges twice, and one is of no layer.
        begun = next(span.epoch for span in of_rows if span.kind == Kind.PREFILL)
        layers = [span.layer for span in of_rows if span.step == Step.DONE and span.epoch >= begun]
        assert layers == [number % TinySizes().layers for number in range(len(layers))]
        for span in of_rows:
            if span.step in rows:
                rows[span.step][span.epoch] += span.rows
    assert rows[Step.PLACE] == rows[Step.ARRIVALS]
    assert rows[Step.PLACE].total() > 0


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
def test_answers_and_steps_of_exchanges(
    npu_fork_server, checkpoint, prompts, expected, compare_all, tmp_path, arguments: dict[str, Any]
):
    """Answers are those of the host."""
    config = ours_on_npu(checkpoint, enable_metrics=True, ascend_moe_trace=str(tmp_path), **arguments)
    with npu_fork_server.start(config) as engine:
        outcomes = compare_all(engine, prompts, expected, DTYPE)
        replays = [state.graphs.replays for states in engine.inspect().states for state in states]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {count > 0 for count in replays} == {"ascend_moe_require_graphs" in arguments}
    (timeline,) = read_timelines(tmp_path)
    check_timeline(timeline)


@pytest.mark.nightly
def test_a_profile_has_the_steps_of_graphs_that_were_captured_before(npu_fork_server, checkpoint, prompts, tmp_path):
    config = ours_on_npu(checkpoint, **SETUPS["dp2-attention-ep2 in graphs"])
    with npu_fork_server.start(config._replace(environment={"SGLANG_TORCH_PROFILER_DIR": str(tmp_path)})) as engine:
        engine.generate(prompts[:2], PROFILED_TOKENS)
        engine.call("start_profile")
        engine.generate(prompts[:2], PROFILED_TOKENS)
        engine.call("stop_profile")
        engine.generate(prompts[:2], PROFILED_TOKENS)
    (folder,) = tmp_path.glob("*-steps")
    (timeline,) = read_timelines(folder)
    check_timeline(timeline)
    for spans in timeline.spans.values():
        decoded = [span for span in spans if span.kind == Kind.DECODE and span.step == Step.PLACE]
        # Of each prompt all tokens but the first, and one more that was begun before the end was known.
        assert 2 * (PROFILED_TOKENS - 1) <= len(decoded) / TinySizes().layers <= 2 * PROFILED_TOKENS
