"""What the tests of model families have in common: the families, their prompts and how close answers have to be."""

from tests.serving.prompts import Piece, cut, text_tokens

FAMILIES = ("qwen3_moe", "qwen2_moe", "glm4_moe", "deepseek_v2", "deepseek_v3", "minimax_m2")
DTYPE = "float32"
# Differences of logprobs that were measured in float32, between SGLang and transformers: at most 0.000016.
REFERENCE_BOUND = 1e-4


def prompts_of_lengths(*lengths: int) -> list[list[int]]:
    """One prompt of each length, each from another place of the text."""
    text = text_tokens()
    return [cut(text, Piece(length, offset=97 * index)) for index, length in enumerate(lengths)]


PROMPTS = prompts_of_lengths(1, 7, 33, 64, 120, 300)
