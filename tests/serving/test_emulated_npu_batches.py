"""On emulated NPUs the tokens do not depend on how SGLang's scheduler cuts and groups the work; decode runs in graphs.

Each test sees in the steps of the ranks that what it is about has happened. No NPU has run this.
"""

from typing import Any

import pytest

from sglang_ascend_moe.launch.comparison import Comparison
from tests.serving.batch_steps import replays_of, steps_of
from tests.serving.configurations import PARALLEL, ours_on_npu
from tests.serving.engines import EngineConfig
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

DTYPE = "bfloat16"
PAGE = 128
"""Tokens of a page of keys and values, which are in the prefix cache as a whole or not."""

# Of its own on each rank: other ranks have to hear of no batch before they choose theirs.
OWN_BUCKETS = {**PARALLEL["dp2-attention-ep2"], "moe_dense_tp_size": 1, "enable_dp_lm_head": True}


def in_graphs(checkpoint, buckets: list[int], **arguments: Any) -> EngineConfig:
    graphs = {"disable_cuda_graph": False, "cuda_graph_bs_decode": buckets, "ascend_moe_require_graphs": True}
    return ours_on_npu(checkpoint, "tell_steps", page_size=PAGE, **graphs, **arguments)


def faults(outcomes: list[Comparison]) -> list[str]:
    return [outcome.fault for outcome in outcomes if outcome.fault]


def test_prompts_in_chunks_and_again_from_the_prefix_cache(
    npu_fork_server, checkpoint, prompts, stock_answers, compare_all
):
    expected = stock_answers(DTYPE)
    with npu_fork_server.start(in_graphs(checkpoint, [4, 16], chunked_prefill_size=PAGE)) as engine:
        assert faults(compare_all(engine, prompts, expected, DTYPE)) == []
        read = [step.size for step in steps_of(engine.log.read_text()) if step.kind == "extend" and step.rank == 0]
        assert faults(compare_all(engine, prompts, expected, DTYPE, together=False)) == []
        cached = engine.generate_with_cache(prompts, NEW_TOKENS).cached_tokens
    assert max(read) == PAGE
    assert len(read) >= sum(map(len, prompts)) // PAGE
    pages = [(len(prompt) - 1) // PAGE for prompt in prompts]
    assert [count for count, whole in zip(cached, pages, strict=True) if count < whole * PAGE] == []


def test_an_idle_rank_replays_too(npu_fork_server, checkpoint, prompts, stock_answers, compare_all):
    config = in_graphs(checkpoint, [4], **PARALLEL["dp2-attention-ep2"])
    with npu_fork_server.start(config) as engine:
        outcomes = compare_all(engine, prompts, stock_answers(DTYPE), DTYPE, together=False)
        replays = replays_of(engine.log.read_text())
    assert faults(outcomes) == []
    alone = [replay for replay in replays if sorted(replay.requests) == [0, 1]]
    assert len(alone) >= len(prompts) * (NEW_TOKENS - 1)
    assert {replay.buckets for replay in alone} == {(4, 4)}
    assert {replay.requests for replay in alone} == {(0, 1), (1, 0)}


def test_ranks_replay_padded_graphs_of_different_sizes(
    npu_fork_server, checkpoint, prompts, stock_answers, compare_all
):
    several = prompts[-5:]
    with npu_fork_server.start(in_graphs(checkpoint, [2, 4], **OWN_BUCKETS)) as engine:
        outcomes = compare_all(engine, several, stock_answers(DTYPE)[-5:], DTYPE)
        replays = replays_of(engine.log.read_text())
    assert faults(outcomes) == []
    assert {(2, 4), (4, 2)} & {replay.buckets for replay in replays}
    assert any(requests == 3 and bucket == 4 for replay in replays for requests, bucket in zip(*replay, strict=True))


def test_four_ranks(npu_fork_server, checkpoint, prompts, stock_answers, compare_all):
    with npu_fork_server.start(in_graphs(checkpoint, [16], **PARALLEL["tp4-ep4"])) as engine:
        outcomes = compare_all(engine, prompts, stock_answers(DTYPE), DTYPE)
        replays = replays_of(engine.log.read_text())
    assert faults(outcomes) == []
    assert {len(replay.requests) for replay in replays} == {4}
    assert len(replays) >= NEW_TOKENS - 1
