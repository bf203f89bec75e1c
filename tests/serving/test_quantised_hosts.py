"""Checkpoints as modelslim writes them, served by a host that dequantises them, in float32.

Judged by Hugging Face's implementation with the weights that the quantised ones stand for.
"""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import PARALLEL, ours
from tests.serving.family_prompts import DTYPE, PROMPTS, REFERENCE_BOUND
from tests.serving.prompts import NEW_TOKENS
from tests.serving.quantised_models import write_dequantised, write_quantised
from tests.serving.reference_models import ReferenceModel

CASES = {
    "qwen3_moe W8A8": ("qwen3_moe", "W8A8_DYNAMIC", "tp2-ep2"),
    "qwen3_moe W4A8": ("qwen3_moe", "W4A8_DYNAMIC", "dp2-attention-ep2"),
    "deepseek_v3 W4A8": ("deepseek_v3", "W4A8_DYNAMIC", "tp2-ep2"),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "kind", "setup"), CASES.values(), ids=CASES)
def test_logprobs_are_those_of_the_dequantised_weights(fork_server, tmp_path: Path, family, kind, setup):
    plain = write_checkpoint(tmp_path / "plain", family)
    quantised = write_quantised(plain, tmp_path / "quantised", kind)
    with fork_server.start(ours(quantised, DTYPE, disable_cuda_graph=True, **PARALLEL[setup])) as engine:
        answers = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    reference = ReferenceModel(write_dequantised(plain, tmp_path / "dequantised", kind))
    assert max(map(reference.distance, PROMPTS, answers)) < REFERENCE_BOUND
    # The weights before they were quantised are far from these.
    assert max(map(ReferenceModel(plain).distance, PROMPTS, answers)) > 100 * REFERENCE_BOUND
