"""Decode in graphs gives the tokens and logprobs of eager decode; what cannot be captured is served eagerly, and said.

With tensor-parallel attention, test_schedules.py compares them: there decode without graphs is one of the cases.
"""

import re
from typing import Any

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import PARALLEL, ours
from tests.serving.family_prompts import FAMILIES, PROMPTS
from tests.serving.prompts import NEW_TOKENS

DATA_PARALLEL = PARALLEL["dp2-attention-ep2"]
WARNING = "Decode runs without graphs"


@pytest.mark.timeout(600)
def test_data_parallel_attention_in_graphs_gives_the_bits_of_eager_decode(fork_server, checkpoint, prompts):
    """Alone, one rank is idle; together, the ranks replay batches and lengths of their own."""
    answers = []
    for arguments in ({"ascend_moe_require_graphs": True}, {"disable_cuda_graph": True}):
        with fork_server.start(ours(checkpoint, "bfloat16", **DATA_PARALLEL, **arguments)) as engine:
            together = engine.generate(prompts, NEW_TOKENS, together=True)
            answers.append((together, engine.generate(prompts[:2], NEW_TOKENS)))
            log = engine.log.read_text()
        captured = re.search(r"Decode graphs: (\d+) captured", log)
        assert (captured is None) == ("disable_cuda_graph" in arguments)
    assert answers[0] == answers[1]


@pytest.mark.nightly
def test_a_schedule_that_graphs_cannot_hold_is_served_eagerly_with_one_warning(fork_server, checkpoint, prompts):
    with fork_server.start(ours(checkpoint, "bfloat16", ascend_moe_schedule="collective")) as engine:
        engine.generate(prompts[:1], 4)
        warnings = [line for line in engine.log.read_text().splitlines() if WARNING in line]
    assert len(warnings) == 1
    assert "--ascend-moe-schedule collective: only the decode schedule runs in graphs" in warnings[0]


def answers_of(fork_server, checkpoint, prompts, **arguments: Any):
    """Together and one after the other, from graphs and without."""
    answers = []
    for kind in ({"ascend_moe_require_graphs": True}, {"disable_cuda_graph": True}):
        with fork_server.start(ours(checkpoint, "bfloat16", **arguments, **kind)) as engine:
            together = engine.generate(prompts, NEW_TOKENS, together=True)
            answers.append((together, engine.generate(prompts[:2], NEW_TOKENS)))
    return answers


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("attention", [{}, {"dp_size": 4, "enable_dp_attention": True}], ids=["tp4", "dp4-attention"])
def test_four_ranks_in_graphs_give_the_bits_of_eager_decode(fork_server, checkpoint, prompts, attention):
    graphs, eager = answers_of(fork_server, checkpoint, prompts, tp_size=4, **attention)
    assert graphs == eager


# Latent attention multiplies each head by a matrix. For one row of 32 numbers oneDNN takes another kernel than for
# several rows, and some bits differ, graphs or not: a batch of one is compared without padding.
WITHOUT_PADDING = {"cuda_graph_bs_decode": [1, 4, 16]}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_graphs_gives_the_bits_of_eager_decode(fork_server, tmp_path, family):
    checkpoint = write_checkpoint(tmp_path, family)
    buckets = WITHOUT_PADDING if family.startswith("deepseek") else {}
    graphs, eager = answers_of(fork_server, checkpoint, PROMPTS, **DATA_PARALLEL, **buckets)
    assert graphs == eager


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_a_replay_of_a_padded_batch_gives_the_bits_of_the_same_step_taken_eagerly(fork_server, tmp_path, family):
    checkpoint = write_checkpoint(tmp_path, family)
    settings = {**DATA_PARALLEL, "ascend_moe_require_graphs": True}
    with fork_server.start(ours(checkpoint, "bfloat16", "take_replayed_steps_again", **settings)) as engine:
        engine.generate(PROMPTS[:2], NEW_TOKENS)
        log = engine.log.read_text()
    # On both ranks, the idle one included.
    assert log.count("a replay gave equal bits") == 2 * 2 * (NEW_TOKENS - 1)
    assert "a replay gave OTHER bits" not in log
