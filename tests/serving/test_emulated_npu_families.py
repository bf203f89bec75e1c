"""Other model families on emulated NPUs, in bfloat16; decode in graphs. No NPU has run this.

Rounding decides tokens of these models, on a host too: there are answers in bfloat16 and in float32, and by how far
they are apart the answers of NPUs are judged (see `rounding`).
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.sglang_release import reaches
from tests.serving.configurations import PARALLEL, ours_on_npu, stock, stock_on_npu
from tests.serving.prompts import NEW_TOKENS, Piece, cut, text_tokens
from tests.serving.rounding import distances, farther

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe", "minimax_m2")
# With SGLang 0.5.18 stock DeepSeek-V2 rounds elsewhere on one NPU; on two, ours gives the bits of later releases.
SAME_BITS = FAMILIES if reaches("0.5.21") else FAMILIES[1:]
LENGTHS = (1, 2, 3, 5, 9, 17, 33, 64, 65, 127, 200, 300)
PROMPTS = [cut(text_tokens(), Piece(length, 97 * index)) for index, length in enumerate(LENGTHS * 3)]

# Room for all requests that run at once.
GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [16, 32]}
OURS = {**GRAPHS, "ascend_moe_require_graphs": True}
# As one rank has them: attention that no two ranks share, whole dense layers.
AS_ON_ONE_RANK = {**PARALLEL["dp2-attention-ep2"], "moe_dense_tp_size": 1}
# Stock SGLang on one rank rounds elsewhere, and scores the experts of GLM4-MoE otherwise than on other machines.
AS_OURS = ("combine_as_across_ranks", "keep_router_weights", "name_scoring_function")


class Family(NamedTuple):
    """A family under test. `answers` starts each engine once."""

    name: str
    answers: Callable[[str], list[Answer]]


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, fork_server, npu_fork_server, tmp_path_factory) -> Family:
    name = request.param
    checkpoint = write_checkpoint(tmp_path_factory.mktemp(name), name)
    engines = {
        "float32": lambda: fork_server.start(stock(checkpoint, "float32")),
        "bfloat16": lambda: fork_server.start(stock(checkpoint, "bfloat16")),
        "stock": lambda: npu_fork_server.start(stock_on_npu(checkpoint)),
        "stock as ours": lambda: npu_fork_server.start(stock_on_npu(checkpoint, *AS_OURS, **GRAPHS)),
        "tp2-ep2": lambda: npu_fork_server.start(ours_on_npu(checkpoint, **OURS)),
        "dp2-attention-ep2": lambda: npu_fork_server.start(ours_on_npu(checkpoint, **AS_ON_ONE_RANK, **OURS)),
    }
    known: dict[str, list[Answer]] = {}

    def answers(setup: str) -> list[Answer]:
        if setup not in known:
            with engines[setup]() as engine:
                known[setup] = engine.generate(PROMPTS, NEW_TOKENS, together=True)
        return known[setup]

    return Family(name, answers)


def too_far(family: Family, setup: str) -> list[str]:
    """Where answers are farther from float32 than bfloat16 is on a host."""
    exact = family.answers("float32")
    return farther(distances(exact, family.answers(setup)), distances(exact, family.answers("bfloat16")))


@pytest.mark.parametrize("family", FAMILIES, indirect=True, scope="module")
@pytest.mark.parametrize("setup", ["stock as ours", "tp2-ep2", "dp2-attention-ep2"])
def test_answers_are_as_far_from_float32_as_those_of_a_host(family, setup):
    assert too_far(family, setup) == []


@pytest.mark.parametrize("family", SAME_BITS, indirect=True, scope="module")
def test_two_ranks_give_the_bits_of_stock_sglang_on_one(family):
    assert family.answers("dp2-attention-ep2") == family.answers("stock as ours")


@pytest.mark.parametrize("family", ["glm4_moe"], indirect=True, scope="module")
def test_stock_sglang_scores_the_experts_of_glm4_otherwise_on_npus(family):
    """The fault that a hook mends (`routers`): were it not told, no bound here would tell anything."""
    assert len(too_far(family, "stock")) == 3
