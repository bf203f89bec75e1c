"""Sparse attention of DeepSeek-V3.2 and GLM-5 on emulated NPUs, in bfloat16. No NPU has run this.

A host has no such attention in SGLang, so transformers says what the answers in float32 are, and how far from them
those in bfloat16 may lie (see `rounding`).
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import PARALLEL, ours_on_npu, stock_on_npu
from tests.serving.engines import EngineConfig
from tests.serving.family_prompts import prompts_of_lengths
from tests.serving.prompts import NEW_TOKENS
from tests.serving.reference_models import ReferenceModel, with_every_key, without_the_indexers_positions
from tests.serving.rounding import distances, farther

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

FAMILIES = ("deepseek_v32", "glm_moe_dsa")
# An indexer picks 64 keys.
PROMPTS = prompts_of_lengths(*(1, 33, 63, 64, 65, 100, 127, 150, 200, 256, 270, 300) * 2)
SPARSE = 100

# Room for all requests that run at once.
GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [16, 32]}
OURS = {**GRAPHS, "ascend_moe_require_graphs": True}
# As one rank has them: attention that no two ranks share, whole dense layers.
AS_ON_ONE_RANK = {**PARALLEL["dp2-attention-ep2"], "moe_dense_tp_size": 1}
SETUPS = {
    "tp2-ep2": PARALLEL["tp2-ep2"],
    "tp2-ep2 in graphs": {**PARALLEL["tp2-ep2"], **OURS},
    "tp2-ep2 in chunks": {**PARALLEL["tp2-ep2"], "chunked_prefill_size": 256},
    "dp2-attention-ep2": AS_ON_ONE_RANK,
    "dp2-attention-ep2 in graphs": {**AS_ON_ONE_RANK, **OURS},
}
# Prefill whose texts two ranks divide: every second token, or an early and a late piece of each.
TOKENS = {"attn_cp_size": 2, "enable_prefill_cp": True, "cp_strategy": "interleave"}
PIECES = {**TOKENS, "cp_strategy": "zigzag"}
GROUPS = {"tp_size": 4, "dp_size": 2, "enable_dp_attention": True}
DIVIDED = {
    "cp2": {"tp_size": 2, **TOKENS, **OURS},
    "cp2 x dp2": {**GROUPS, **TOKENS, **OURS, "moe_dense_tp_size": 1, "enable_dp_lm_head": True},
    "cp2 in pieces": {"tp_size": 2, **PIECES, **OURS},
    "cp2 in pieces, two stages": {"tp_size": 2, "pp_size": 2, **PIECES},
}
# SGLang does not divide texts of DeepSeek-V3.2 into pieces.
CASES = [
    (family, setup)
    for family in FAMILIES
    for setup in ("stock as ours", *SETUPS, *DIVIDED)
    if family != "deepseek_v32" or "in pieces" not in setup
]
# Stock SGLang on one rank rounds elsewhere. Eagerly: in graphs its indexers turn keys by the positions of a warm-up.
AS_OURS = ("combine_as_across_ranks", "keep_router_weights", "name_scoring_function")
# Of transformers, along the answers in float32.
REFERENCES = {
    "bfloat16": lambda checkpoint: ReferenceModel(checkpoint, dtype=torch.bfloat16),
    "every key": lambda checkpoint: ReferenceModel(checkpoint, with_every_key),
    "other keys": lambda checkpoint: ReferenceModel(checkpoint, without_the_indexers_positions),
}


class Family(NamedTuple):
    """A family under test. `answers` starts each engine, and loads each reference, once."""

    name: str
    answers: Callable[[str], list[Answer]]


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, npu_fork_server, tmp_path_factory) -> Family:
    name = request.param
    checkpoint = write_checkpoint(tmp_path_factory.mktemp(name), name)
    known: dict[str, list[Answer]] = {}

    def answer(setup: str) -> list[Answer]:
        if setup == "float32":
            return ReferenceModel(checkpoint).answers(PROMPTS, NEW_TOKENS)
        if setup in REFERENCES:
            return REFERENCES[setup](checkpoint).along(PROMPTS, answers("float32"))
        with npu_fork_server.start(config_of(setup)) as engine:
            return engine.generate(PROMPTS, NEW_TOKENS, together=True)

    def config_of(setup: str) -> EngineConfig:
        if setup == "stock as ours":
            return stock_on_npu(checkpoint, *AS_OURS)
        return ours_on_npu(checkpoint, **(SETUPS | DIVIDED)[setup])

    def answers(setup: str) -> list[Answer]:
        if setup not in known:
            known[setup] = answer(setup)
        return known[setup]

    return Family(name, answers)


def too_far(family: Family, setup: str) -> list[str]:
    """Where answers are farther from float32 than those of transformers in bfloat16: of all prompts, and of those of
    which most keys are left out."""
    exact, found, known = (family.answers(name) for name in ("float32", setup, "bfloat16"))
    said = []
    for shortest in (0, SPARSE):
        chosen = [index for index, prompt in enumerate(PROMPTS) if len(prompt) >= shortest]
        exactly, others, roundings = ([answers[index] for index in chosen] for answers in (exact, found, known))
        said += farther(distances(exactly, others), distances(exactly, roundings))
    return said


@pytest.mark.parametrize(("family", "setup"), CASES, indirect=["family"], scope="module")
def test_answers_are_as_far_from_float32_as_those_of_transformers(family, setup):
    assert too_far(family, setup) == []


@pytest.mark.parametrize("family", FAMILIES, indirect=True, scope="module")
@pytest.mark.parametrize("setup", ["dp2-attention-ep2", "dp2-attention-ep2 in graphs"])
def test_two_ranks_give_the_bits_of_stock_sglang_on_one(family, setup):
    assert family.answers(setup) == family.answers("stock as ours")


@pytest.mark.parametrize("family", FAMILIES, indirect=True, scope="module")
@pytest.mark.parametrize("wrong", ["every key", "other keys"])
def test_other_keys_would_be_noticed(family, wrong):
    assert too_far(family, wrong) != []
