"""Families, sizes and gains of the tiny checkpoints."""

from typing import NamedTuple

FAMILY_NAMES = (
    "qwen3_moe", "qwen2_moe", "glm4_moe", "deepseek_v2", "deepseek_v3", "minimax_m2", "deepseek_v32", "glm_moe_dsa",
)  # fmt: skip
"""Each a function of `families`, which imports torch."""


class TinySizes(NamedTuple):
    """Sizes of a tiny model. Heads and experts divide by 4, so that four ranks can share them."""

    layers: int = 4
    hidden: int = 128
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    experts: int = 16
    topk: int = 4
    expert_hidden: int = 64
    vocab: int = 768
    max_positions: int = 2048


TRAINED_FAMILIES = ("qwen3_moe", "deepseek_v3")
TRAINED_SIZES = TinySizes(layers=2, heads=4, experts=8, topk=2, vocab=320)


class Init(NamedTuple):
    """Gains of the random weights: the factor by which each multiplies the standard deviation of unit input.

    Chosen by measurement: larger experts or sharper attention let the rounding of bf16 grow through the layers until
    it decides tokens; smaller ones let the model repeat itself, or say the same without its experts.
    """

    value_out: float = 0.7
    query_norm: float = 2.0  # the constant weight of q_norm: how sharply attention chooses
    router: float = 3.0
    sigmoid_router: float = 1.0  # a sharper one saturates: in bf16 the best experts would have equal scores
    correction_bias: float = 0.1
    expert_in: float = 0.5
    expert_out: float = 2.5
    head: float = 4.0
