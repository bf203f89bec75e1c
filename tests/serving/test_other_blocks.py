"""MoE blocks of models whose attention no host can run, in the layers of one that it can: two ranks give the tokens of
one."""

from pathlib import Path

import pytest

from tests.serving.configurations import PARALLEL, ours, stock
from tests.serving.engines import ForkServer
from tests.serving.family_prompts import DTYPE, PROMPTS
from tests.serving.prompts import NEW_TOKENS

BLOCKS = (
    "use_blocks_of_deepseek_v4",
    "use_blocks_of_gpt_oss",
    "use_blocks_of_kimi_k3",
    "use_blocks_of_mimo_v2",
    "use_blocks_of_step3p5",
)

pytestmark = pytest.mark.nightly


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
