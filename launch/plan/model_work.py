"""What a model multiplies and keeps for a token, by the arithmetic of its config: no weight has to be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.host.checkpoint_bytes import WeightBytes, weight_bytes
from sglang_ascend_moe.serving.host.server_estimate import ModelSizes, model_sizes
from sglang_ascend_moe.windows.layout import ELEMENT_BYTES


class NumberBytes(NamedTuple):
    """Bytes of a number of a weight, of routed experts and of the rest; embeddings and head are bfloat16."""

    experts: float
    others: float


NUMBER_BYTES = {"bf16": NumberBytes(2, 2), "w8a8": NumberBytes(1, 1), "w4a8": NumberBytes(0.5, 1)}
"""By format, as modelslim writes them (docs/models.md)."""
WIDE = 2
"""Bytes of a number of the embeddings."""


class ModelWork(NamedTuple):
    """Numbers of weights, and sizes, of a model. Of one layer unless said otherwise.

    dense_layers: of `sizes.layers`, those without experts. attention, dense, expert (one), shared (all), router:
    numbers of weights. embeddings: of the embeddings and the head together. heads: of queries. score_width,
    absorbed_width: multiplications for a query head and a key, while prompts are read and while tokens are written,
    where latent attention multiplies what it keeps.
    """

    name: str
    sizes: ModelSizes
    dense_layers: int
    attention: int
    dense: int
    expert: int
    shared: int
    router: int
    embeddings: int
    heads: int
    score_width: int
    absorbed_width: int
    experts: int
    topk: int

    @property
    def moe_layers(self) -> int:
        return self.sizes.layers - self.dense_layers

    @property
    def numbers(self) -> WeightBytes:
        """Numbers of weights of the whole model, without norms and biases, which are less than a thousandth."""
        return WeightBytes(
            experts=self.moe_layers * self.experts * self.expert,
            shared_experts=self.moe_layers * self.shared,
            others=self.sizes.layers * self.attention
            + self.dense_layers * self.dense
            + self.moe_layers * self.router
            + self.embeddings,
        )

    def weights(self, kind: str) -> WeightBytes:
        """Bytes of the whole model in the format `kind`, a key of `NUMBER_BYTES`."""
        each, numbers = NUMBER_BYTES[kind], self.numbers
        return WeightBytes(
            experts=int(numbers.experts * each.experts),
            shared_experts=int(numbers.shared_experts * each.others),
            others=int((numbers.others - self.embeddings) * each.others) + self.embeddings * WIDE,
        )


def weights_of(work: ModelWork, kind: str, *, on_npu: bool) -> WeightBytes:
    """As start-up counts them where the checkpoint is there; by arithmetic where only its config is."""
    found = None
    if work.sizes.folder.is_dir():
        found = weight_bytes(work.sizes.folder, ELEMENT_BYTES[work.sizes.dtype], dequantised=not on_npu)
    return found or work.weights(kind)


def model_work(name: str, folder: Path, value_of: Callable[[str], Any], asked: str) -> ModelWork:
    """From a Hugging Face config, of which `value_of` gives the value under a name, or None.

    name: what to call it. folder: of its files. asked: the flag that names it, and its value.
    Raises `InvalidInput` for a config that lacks what every mixture of experts has.
    """
    sizes = model_sizes(folder, value_of)
    width = value_of("moe_intermediate_size") or value_of("intermediate_size")
    if sizes is None or sizes.experts is None or sizes.topk is None or not width:
        raise InvalidInput(f"{asked}: it does not say the layers, heads, experts and widths of a model; give another")
    hidden, heads = sizes.hidden, value_of("num_attention_heads")
    attention, scored, absorbed = _attention(sizes, heads, value_of)
    shared_width = value_of("shared_expert_intermediate_size") or (value_of("n_shared_experts") or 0) * width
    tied = bool(value_of("tie_word_embeddings"))
    return ModelWork(
        name=name,
        sizes=sizes,
        dense_layers=value_of("first_k_dense_replace") or 0,
        attention=attention,
        dense=3 * hidden * (value_of("intermediate_size") or width),
        expert=3 * hidden * width,
        shared=3 * hidden * shared_width,
        router=hidden * sizes.experts,
        embeddings=(1 if tied else 2) * sizes.vocabulary * hidden,
        heads=heads,
        score_width=scored,
        absorbed_width=absorbed,
        experts=sizes.experts,
        topk=sizes.topk,
    )


def _attention(sizes: ModelSizes, heads: int, value_of: Callable[[str], Any]) -> tuple[int, int, int]:
    """Numbers of weights, `score_width` and `absorbed_width` of one layer.

    Grouped queries: W_q, W_k, W_v, W_o. Latent: W_q (through `q_lora_rank` if there is one), W_kv_a, W_kv_b, W_o
    (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """
    hidden = sizes.hidden
    if not sizes.latent:
        queries = heads * sizes.head_numbers
        weights = 2 * hidden * queries + 2 * hidden * sizes.heads * sizes.head_numbers
        return weights, 2 * sizes.head_numbers, 2 * sizes.head_numbers
    nope, rope, value = (value_of(key) or 0 for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    compressed, latent = value_of("q_lora_rank"), value_of("kv_lora_rank")
    queries = heads * (nope + rope)
    weights = hidden * compressed + compressed * queries if compressed else hidden * queries
    weights += hidden * sizes.latent + latent * heads * (nope + value) + heads * value * hidden
    return weights, nope + rope + value, sizes.latent + latent
