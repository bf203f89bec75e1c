"""Quantised checkpoints, served by a host in float32: experts that are integers as they are, all else dequantised.

Judged by Hugging Face's implementation with the weights that the quantised ones stand for and, where experts are
integers, rows that are quantised before them; and by one rank.
"""

from pathlib import Path

import pytest
import torch

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import PARALLEL, ours
from tests.serving.family_prompts import DTYPE, PROMPTS, REFERENCE_BOUND
from tests.serving.prompts import NEW_TOKENS
from tests.serving.quantised_models import (
    BITS,
    FP8,
    write_compressed,
    write_dequantised,
    write_fp8,
    write_quantised,
    write_static,
)
from tests.serving.reference_models import ReferenceModel, with_quantised_rows
from tests.serving.test_redundant_experts import (
    REBALANCE,
    assert_each_expert_is_the_same_everywhere,
    assert_no_token_changes_when_experts_move,
)

CASES = {
    "qwen3_moe W8A8 of modelslim": ("qwen3_moe", write_quantised, "W8A8_DYNAMIC", "tp2-ep2"),
    "qwen2_moe W8A8 of modelslim, dense layers with known scales": (
        "qwen2_moe",
        write_static,
        "W8A8_DYNAMIC",
        "tp2-ep2",
    ),
    "qwen3_moe W4A8 of modelslim": ("qwen3_moe", write_quantised, "W4A8_DYNAMIC", "dp2-attention-ep2"),
    "deepseek_v3 W4A8 of modelslim": ("deepseek_v3", write_quantised, "W4A8_DYNAMIC", "tp2-ep2"),
    "qwen3_moe W8A8 of compressed-tensors": ("qwen3_moe", write_compressed, "W8A8_DYNAMIC", "dp2-attention-ep2"),
    "qwen3_moe W4A8 of compressed-tensors": ("qwen3_moe", write_compressed, "W4A8_DYNAMIC", "tp2-ep2"),
    "deepseek_v3 fp8": ("deepseek_v3", write_fp8, FP8, "tp2-ep2"),
    "minimax_m2 fp8": ("minimax_m2", write_fp8, FP8, "dp2-attention-ep2"),
}

MANY, FEW = 0.25, 0.05
"""Of tokens. A number halfway between two integers may become the other one, since float32 sums have another order
here: the token's logprobs are others then, and those of tokens that attend to it. Measured: 0.45 to 1, and 0."""


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "write", "kind", "setup"), CASES.values(), ids=CASES)
def test_logprobs_are_those_of_the_dequantised_weights(fork_server, tmp_path: Path, family, write, kind, setup):
    plain = write_checkpoint(tmp_path / "plain", family)
    quantised = write(plain, tmp_path / "quantised", kind)
    with fork_server.start(ours(quantised, DTYPE, disable_cuda_graph=True, **PARALLEL[setup])) as engine:
        answers = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    with fork_server.start(ours(quantised, DTYPE, tp_size=1)) as engine:
        on_one_rank = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in on_one_rank]
    dequantised = write_dequantised(plain, tmp_path / "dequantised", kind)
    if kind == FP8:
        assert near(ReferenceModel(dequantised), answers) == 1
    else:
        assert near(ReferenceModel(dequantised, with_quantised_rows), answers) > MANY
        # Where rows are not quantised, logprobs are others.
        assert near(ReferenceModel(dequantised), answers) < FEW
    # And those of the weights before they were quantised.
    assert near(ReferenceModel(plain), answers) < FEW


@pytest.mark.nightly
@pytest.mark.parametrize("kind", BITS)
def test_experts_that_move_take_their_scales_with_them(fork_server, checkpoint, prompts, tmp_path, kind):
    folder = write_quantised(checkpoint, tmp_path / "quantised", kind)
    arguments = {"disable_radix_cache": True, **REBALANCE}
    with fork_server.start(ours(folder, DTYPE, "hash_experts_that_move", **arguments)) as engine:
        assert_no_token_changes_when_experts_move(engine, prompts)
    # Weights and scales of two products.
    assert_each_expert_is_the_same_everywhere(engine, parts=4)


def near(reference: ReferenceModel, answers: list[Answer]) -> float:
    """The share of tokens whose candidates' logprobs are those of the reference."""
    distances = torch.cat([reference.distances(*pair) for pair in zip(PROMPTS, answers, strict=True)])
    return (distances < REFERENCE_BOUND).float().mean().item()
