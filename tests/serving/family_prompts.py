"""What the tests of model families have in common: the families, their prompts and how close answers have to be."""

from sglang_ascend_moe.serving.sglang_release import installed
from sglang_ascend_moe.serving.worker.moe_blocks import KNOWN_BLOCKS
from tests.serving.prompts import Piece, cut, text_tokens

BLOCKS = {
    "qwen3_moe": "qwen3_moe.Qwen3MoeSparseMoeBlock",
    "qwen2_moe": "qwen2_moe.Qwen2MoeSparseMoeBlock",
    "glm4_moe": "glm4_moe.Glm4MoeSparseMoeBlock",
    "deepseek_v2": "deepseek_v2.DeepseekV2MoE",
    "deepseek_v3": "deepseek_v2.DeepseekV2MoE",
    "minimax_m2": "minimax_m2.MiniMaxM2MoE",
}
FAMILIES = tuple(family for family, block in BLOCKS.items() if installed() in KNOWN_BLOCKS[block])
"""Those that are served with the installed SGLang: with the newest all."""
DTYPE = "float32"
# Differences of logprobs that were measured in float32, between SGLang and transformers: at most 0.000016.
REFERENCE_BOUND = 1e-4


def prompts_of_lengths(*lengths: int) -> list[list[int]]:
    """One prompt of each length, each from another place of the text."""
    text = text_tokens()
    return [cut(text, Piece(length, offset=97 * index)) for index, length in enumerate(lengths)]


PROMPTS = prompts_of_lengths(1, 7, 33, 64, 120, 300)
