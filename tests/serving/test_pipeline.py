"""Stages of a pipeline, each with exchanges of its own, give stock SGLang's tokens, and end together by name."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerFailed, ServerProcess, log_tail
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.worker.live_state import RankState
from tests.serving.clients import Traffic, ask
from tests.serving.configurations import ours, ours_on_npu, stock
from tests.serving.engines import Engine, ForkServer
from tests.serving.family_prompts import prompts_of_lengths
from tests.serving.leftovers import NOTHING
from tests.serving.prompts import NEW_TOKENS
from tests.serving.titled_processes import titled

PROMPTS = prompts_of_lengths(1, 2, 3, 5, 9, 17, 31, 32, 34, 65, 90, 127, 128, 200, 300, 450)
DATA_PARALLEL = {"dp_size": 2, "enable_dp_attention": True}
EAGER = {"disable_cuda_graph": True}
ON_NPU_IN_GRAPHS = {
    "disable_cuda_graph": False, "cuda_graph_bs_decode": [4, 16], "ascend_moe_require_graphs": True,
}  # fmt: skip
SETUPS: dict[str, dict[str, Any]] = {
    "two stages": {"tp_size": 1},
    "two stages of two": {"tp_size": 2},
    "two stages of two, data-parallel attention": {"tp_size": 2, **DATA_PARALLEL},
    "two stages, eager": {"tp_size": 1, **EAGER},
    "two stages of two, eager": {"tp_size": 2, **EAGER},
    "two stages, one request at a time": {"tp_size": 1, "pp_max_micro_batch_size": 1},
    # DeepSeek's first layer is dense, so that the first stage makes no exchange.
    "four stages": {"tp_size": 1, "pp_size": 4},
    "four stages of two, eager": {"tp_size": 2, "pp_size": 4, **EAGER},
}
READY_SECONDS = 600.0
END_SECONDS = 15.0
"""In which a server has to be gone after a fault; with a stopped rank, ten of them are patience."""
IDLE_TIMEOUT = 2
"""For `--ascend-moe-timeout`, seconds."""
FAULTS = {
    "killed": (signal.SIGKILL, "was killed, or crashed"),
    "stopped": (signal.SIGSTOP, "has been stopped for 10 s (SIGSTOP)"),
}


def states_of_all(engine: Engine) -> list[RankState]:
    """Of all ranks, when the later stages have told of everything that the first has done."""
    until = time.monotonic() + 60
    while True:
        states = engine.inspect().states[0]
        replays = {state.graphs.replays for state in states}
        if len(replays) == 1:
            return states
        assert time.monotonic() < until, replays


def test_two_stages_give_the_tokens_of_one_rank_and_tell_of_both(
    fork_server: ForkServer, checkpoint, prompts, stock_answers, record_comparisons
):
    with fork_server.start(ours(checkpoint, "float32", tp_size=1, pp_size=2, enable_metrics=True)) as engine:
        found = engine.generate(prompts, NEW_TOKENS, together=True)
        states = states_of_all(engine)
        metrics = engine.inspect().metrics
    outcomes = record_comparisons(stock_answers("float32"), found, "float32")
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert [outcome.equal_tokens for outcome in outcomes] == [NEW_TOKENS] * len(prompts)
    assert [(state.stage, state.stages, state.rank, state.ranks) for state in states] == [(0, 2, 0, 1), (1, 2, 0, 1)]
    assert [state.graphs.state for state in states] == ["tape", "tape"]
    assert all(state.exchanges[0].phases["decode"].calls > 0 for state in states)
    labels = [f'ascend_moe_rounds_total{{moe_ep_rank="0",phase="decode",pp_rank="{stage}"}}' for stage in (0, 1)]
    assert [label for label in labels if label not in metrics] == []


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def expected(fork_server: ForkServer, family: Path) -> list[Any]:
    with fork_server.start(stock(family, "float32")) as engine:
        return engine.generate(PROMPTS, NEW_TOKENS, together=True)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("setup", SETUPS)
def test_stages_give_the_tokens_of_one_rank(fork_server: ForkServer, family, expected, record_comparisons, setup):
    config = ours(family, "float32", **{"pp_size": 2, **SETUPS[setup]})
    with fork_server.start(config) as engine:
        found = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    outcomes = record_comparisons(expected, found, "float32")
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert [outcome.equal_tokens for outcome in outcomes] == [NEW_TOKENS] * len(PROMPTS)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", [EAGER, ON_NPU_IN_GRAPHS], ids=["eager", "graphs"])
@pytest.mark.parametrize("batch", [4, 16], ids=["batches of 4", "one batch"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_stages_on_emulated_npus_answer_as_the_host(
    npu_fork_server: ForkServer, checkpoint, prompts, stock_answers, compare_all, ranks, batch, steps
):
    sizes = {"tp_size": ranks, "pp_size": 2, "pp_max_micro_batch_size": batch}
    config = ours_on_npu(checkpoint, enable_metrics=True, **sizes, **steps)
    with npu_fork_server.start(config) as engine:
        outcomes = compare_all(engine, prompts, stock_answers("bfloat16"), "bfloat16")
        states = states_of_all(engine)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    places = [(stage, rank) for stage in (0, 1) for rank in range(ranks)]
    assert [(state.stage, state.rank) for state in states] == places
    assert {state.graphs.replays > 0 for state in states} == {steps is ON_NPU_IN_GRAPHS}


@pytest.fixture
def server_arguments(checkpoint: Path) -> list[str]:
    """Of two stages of two ranks."""
    sizes = ["--pp-size", "2", "--tp-size", "2", "--max-running-requests", "8"]
    return ["--model-path", str(checkpoint), "--device", "cpu", "--ascend-moe", *sizes]


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rank", ["PP0_TP1", "PP1_TP0", "PP1_TP1"])
def test_a_rank_of_any_stage_that_fails_under_load_ends_the_server_by_name(
    surroundings, server_arguments, prompts, tmp_path, rank, fault
):
    sent, cause = FAULTS[fault]
    with ServerProcess(server_arguments, tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        expected = [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in prompts[:8]]
        with Traffic(server.url, prompts[:8], NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            [pid] = titled(server.pid, rank)
            os.kill(pid, sent)
            code = server.wait_until_ended(END_SECONDS)
        last = server.log.read_text().splitlines()[-1]
        assert code == 1, log_tail(server.log)
        assert last.startswith(f"The server ends: sglang::scheduler_{rank}")
        assert f"(process {pid}) {cause}" in last
        assert [place for place, said in traffic.answers if said.tokens not in (None, expected[place])] == []
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attention", ["tp", "dp"])
def test_an_idle_server_outlasts_its_timeout(server_arguments, prompts, tmp_path, attention):
    arguments = [*server_arguments, "--ascend-moe-timeout", str(IDLE_TIMEOUT)]
    if attention == "dp":
        arguments += ["--dp-size", "2", "--enable-dp-attention"]
    with ServerProcess(arguments, tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        expected = ask(server.url, prompts[3], NEW_TOKENS).tokens
        with pytest.raises(ServerFailed, match="still runs"):
            server.wait_until_ended(4 * IDLE_TIMEOUT)
        assert ask(server.url, prompts[3], NEW_TOKENS).tokens == expected
