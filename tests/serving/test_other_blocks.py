"""MoE blocks of models whose attention no host can run, in the layers of one that it can: two ranks give the tokens of
one; two emulated NPUs are as far from float32 as a host in bfloat16 (see `rounding`). No NPU has run this."""

from pathlib import Path

import pytest

from tests.serving.configurations import PARALLEL, ours, ours_on_npu, stock
from tests.serving.engines import ForkServer
from tests.serving.family_prompts import DTYPE, PROMPTS
from tests.serving.prompts import NEW_TOKENS
from tests.serving.rounding import distances, farther

BLOCKS = (
    "use_blocks_of_deepseek_v4",
    "use_blocks_of_gpt_oss",
    "use_blocks_of_kimi_k3",
    "use_blocks_of_mimo_v2",
    "use_blocks_of_step3p5",
)

pytestmark = pytest.mark.nightly


GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [32], "ascend_moe_require_graphs": True}

# The layers of Hunyuan know no data-parallel attention.
CASES = [(block, parallel) for block in BLOCKS for parallel in ("tp2-ep2", "dp2-attention-ep2")]
CASES.append(("use_blocks_of_hunyuan", "tp2-ep2"))


@pytest.mark.parametrize(("block", "parallel"), CASES, ids=map("-".join, CASES))
def test_two_ranks_give_the_tokens_of_stock_sglang_on_one(
    fork_server: ForkServer, checkpoint: Path, record_comparisons, block: str, parallel: str
):
    with fork_server.start(stock(checkpoint, DTYPE, block)) as engine:
        expected = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    with fork_server.start(ours(checkpoint, DTYPE, block, **PARALLEL[parallel])) as engine:
        outcomes = record_comparisons(expected, engine.generate(PROMPTS, NEW_TOKENS, together=True), DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert [outcome.equal_tokens for outcome in outcomes] == [NEW_TOKENS] * len(PROMPTS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", BLOCKS)
def test_emulated_npus_are_as_far_from_float32_as_a_host(fork_server, npu_fork_server, checkpoint: Path, block: str):
    configured = {
        "float32": (fork_server, stock(checkpoint, "float32", block)),
        "bfloat16": (fork_server, stock(checkpoint, "bfloat16", block)),
        "npus": (npu_fork_server, ours_on_npu(checkpoint, block, **PARALLEL["dp2-attention-ep2"], **GRAPHS)),
    }
    answers = {}
    for name, (server, configuration) in configured.items():
        with server.start(configuration) as engine:
            answers[name] = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    known = distances(answers["float32"], answers["bfloat16"])
    assert farther(distances(answers["float32"], answers["npus"]), known) == []
