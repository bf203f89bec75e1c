"""Quantised checkpoints, served by a host that dequantises them, in float32.

Judged by Hugging Face's implementation with the weights that the quantised ones stand for, and by stock SGLang on one
rank.
"""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import PARALLEL, ours, stock
from tests.serving.family_prompts import DTYPE, PROMPTS, REFERENCE_BOUND
from tests.serving.prompts import NEW_TOKENS
from tests.serving.quantised_models import FP8, write_compressed, write_dequantised, write_fp8, write_quantised
from tests.serving.reference_models import ReferenceModel

CASES = {
    "qwen3_moe W8A8 of modelslim": ("qwen3_moe", write_quantised, "W8A8_DYNAMIC", "tp2-ep2"),
    "qwen3_moe W4A8 of modelslim": ("qwen3_moe", write_quantised, "W4A8_DYNAMIC", "dp2-attention-ep2"),
    "deepseek_v3 W4A8 of modelslim": ("deepseek_v3", write_quantised, "W4A8_DYNAMIC", "tp2-ep2"),
    "qwen3_moe W8A8 of compressed-tensors": ("qwen3_moe", write_compressed, "W8A8_DYNAMIC", "dp2-attention-ep2"),
    "qwen3_moe W4A8 of compressed-tensors": ("qwen3_moe", write_compressed, "W4A8_DYNAMIC", "tp2-ep2"),
    "deepseek_v3 fp8": ("deepseek_v3", write_fp8, FP8, "tp2-ep2"),
    "minimax_m2 fp8": ("minimax_m2", write_fp8, FP8, "dp2-attention-ep2"),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "write", "kind", "setup"), CASES.values(), ids=CASES)
def test_logprobs_are_those_of_the_dequantised_weights(fork_server, tmp_path: Path, family, write, kind, setup):
    plain = write_checkpoint(tmp_path / "plain", family)
    quantised = write(plain, tmp_path / "quantised", kind)
    with fork_server.start(ours(quantised, DTYPE, disable_cuda_graph=True, **PARALLEL[setup])) as engine:
        answers = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    reference = ReferenceModel(write_dequantised(plain, tmp_path / "dequantised", kind))
    assert max(map(reference.distance, PROMPTS, answers)) < REFERENCE_BOUND
    # The weights before they were quantised are far from these.
    assert max(map(ReferenceModel(plain).distance, PROMPTS, answers)) > 100 * REFERENCE_BOUND
    with fork_server.start(stock(quantised, DTYPE)) as engine:
        on_one_rank = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in on_one_rank]
