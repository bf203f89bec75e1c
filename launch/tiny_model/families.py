"""The model families of the tiny checkpoints: config.json and tensors as published checkpoints of a family have them.

Each function adds the tensors of one family and returns its config. What the families share is in `Parts`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from sglang_ascend_moe.launch.tiny_model.model_sizes import Init, TinySizes
from sglang_ascend_moe.launch.tiny_model.weights import RandomTensors

Config = dict[str, object]

# Sparse layers begin here in the families whose first layers are dense.
FIRST_SPARSE_LAYER = 1


class Parts(NamedTuple):
    """Builds the parts that families have in common. `producible` are the ids of the tokens that can be generated."""

    sizes: TinySizes
    init: Init
    tensors: RandomTensors
    producible: list[int]

    def config(self, architecture: str, model_type: str) -> Config:
        """The keys that every family has."""
        sizes = self.sizes
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.expert_hidden * sizes.topk,
            "max_position_embeddings": sizes.max_positions,
            "moe_intermediate_size": sizes.expert_hidden,
            "num_attention_heads": sizes.heads,
            "num_experts_per_tok": sizes.topk,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": sizes.vocab,
        }

    def frame(self) -> list[str]:
        """Embedding, head and norms. Returns the name prefix of every layer."""
        hidden = self.sizes.hidden
        self.tensors.normal("model.embed_tokens.weight", self.sizes.vocab, hidden, std=1.0)
        self.tensors.norm("model.norm", hidden)
        rows = self.tensors.normal("lm_head.weight", len(self.producible), hidden, std=self.init.head * hidden**-0.5)
        head = torch.zeros(self.sizes.vocab, hidden, dtype=rows.dtype)
        head[self.producible] = rows
        self.tensors.by_name["lm_head.weight"] = head
        prefixes = [f"model.layers.{layer}." for layer in range(self.sizes.layers)]
        for prefix in prefixes:
            self.tensors.norm(f"{prefix}input_layernorm", hidden)
            self.tensors.norm(f"{prefix}post_attention_layernorm", hidden)
        return prefixes

    def attention(self, prefix: str, head_dim: int, *, query: float = 1.0, bias: bool = False) -> None:
        """Grouped-query attention of one layer; `query` is the gain of the query projection."""
        hidden, heads, kv_heads = self.sizes.hidden, self.sizes.heads, self.sizes.kv_heads
        for name, width, gain in (
            ("q_proj", heads * head_dim, query),
            ("k_proj", kv_heads * head_dim, 1.0),
            ("v_proj", kv_heads * head_dim, self.init.value_out),
        ):
            self.tensors.linear(f"{prefix}self_attn.{name}", width, hidden, gain=gain)
            if bias:
                self.tensors.normal(f"{prefix}self_attn.{name}.bias", width, std=0.3)
        self.tensors.linear(f"{prefix}self_attn.o_proj", hidden, heads * head_dim, gain=self.init.value_out)

    def query_key_norms(self, prefix: str, query_width: int, key_width: int) -> None:
        """The norms of queries and keys of one layer."""
        self.tensors.norm(f"{prefix}self_attn.q_norm", query_width, self.init.query_norm)
        self.tensors.norm(f"{prefix}self_attn.k_norm", key_width)

    def latent_attention(self, prefix: str, latent: "LatentSizes") -> None:
        """Multi-head latent attention of one layer."""
        hidden, heads = self.sizes.hidden, self.sizes.heads
        query_width = heads * (latent.nope_dim + latent.rope_dim)
        attention = f"{prefix}self_attn."
        if latent.query_rank is None:
            self.tensors.linear(f"{attention}q_proj", query_width, hidden, gain=self.init.query_norm)
        else:
            self.tensors.linear(f"{attention}q_a_proj", latent.query_rank, hidden, gain=1.0)
            self.tensors.norm(f"{attention}q_a_layernorm", latent.query_rank)
            self.tensors.linear(f"{attention}q_b_proj", query_width, latent.query_rank, gain=self.init.query_norm)
        self.tensors.linear(f"{attention}kv_a_proj_with_mqa", latent.key_rank + latent.rope_dim, hidden, gain=1.0)
        self.tensors.norm(f"{attention}kv_a_layernorm", latent.key_rank)
        self.tensors.linear(
            f"{attention}kv_b_proj", heads * (latent.nope_dim + latent.value_dim), latent.key_rank, gain=1.0
        )
        self.tensors.linear(f"{attention}o_proj", hidden, heads * latent.value_dim, gain=self.init.value_out**2)

    def mlp(self, module: str, width: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> None:
        """A gated network: an expert, a shared expert or a dense layer. `names` are those of gate, up and down."""
        gate, up, down = names
        self.tensors.linear(f"{module}.{gate}", width, self.sizes.hidden, gain=self.init.expert_in)
        self.tensors.linear(f"{module}.{up}", width, self.sizes.hidden, gain=self.init.expert_in)
        self.tensors.linear(f"{module}.{down}", self.sizes.hidden, width, gain=self.init.expert_out)

    def experts(self, module: str, router: float, **names: tuple[str, str, str]) -> None:
        """Router, of gain `router`, and routed experts of one layer."""
        self.tensors.linear(f"{module}.gate", self.sizes.experts, self.sizes.hidden, gain=router)
        for expert in range(self.sizes.experts):
            self.mlp(f"{module}.experts.{expert}", self.sizes.expert_hidden, **names)

    def correction_bias(self, name: str) -> None:
        """What is added to the scores for the choice of experts only; float32, as published checkpoints have it."""
        self.tensors.normal(name, self.sizes.experts, std=self.init.correction_bias, dtype=torch.float32)

    def indexer(self, prefix: str, index: "IndexSizes", query_rank: int) -> None:
        """What picks the keys of sparse attention in one layer."""
        module = f"{prefix}self_attn.indexer."
        self.tensors.linear(f"{module}wq_b", index.heads * index.head_dim, query_rank, gain=1.0)
        self.tensors.linear(f"{module}wk", index.head_dim, self.sizes.hidden, gain=1.0)
        self.tensors.norm(f"{module}k_norm", index.head_dim)
        self.tensors.normal(f"{module}k_norm.bias", index.head_dim, std=0.1)
        self.tensors.linear(f"{module}weights_proj", index.heads, self.sizes.hidden, gain=1.0)


class IndexSizes(NamedTuple):
    """Sizes of an indexer, its heads as wide as NPUs take them; `topk` keys are picked for each token."""

    heads: int = 8
    head_dim: int = 128
    topk: int = 64


class LatentSizes(NamedTuple):
    """Sizes of multi-head latent attention; `query_rank` None for a query projection of one piece."""

    query_rank: int | None
    key_rank: int = 64
    nope_dim: int = 32
    rope_dim: int = 16
    value_dim: int = 32


SPARSE_LATENT = LatentSizes(query_rank=96, key_rank=512, rope_dim=64)


def qwen3_moe(parts: Parts) -> Config:
    """Qwen3-MoE: every layer sparse, softmax routing with renormalised top-k weights, no shared expert."""
    head_dim = parts.sizes.head_dim
    for prefix in parts.frame():
        parts.attention(prefix, head_dim)
        parts.query_key_norms(prefix, head_dim, head_dim)
        parts.experts(f"{prefix}mlp", parts.init.router)
    return parts.config("Qwen3MoeForCausalLM", "qwen3_moe") | {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": head_dim,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "num_experts": parts.sizes.experts,
        "use_sliding_window": False,
    }


def qwen2_moe(parts: Parts) -> Config:
    """Qwen2-MoE: softmax routing, weights not renormalised, a shared expert behind a sigmoid gate."""
    sizes = parts.sizes
    shared_width = sizes.expert_hidden * sizes.topk
    for prefix in parts.frame():
        parts.attention(prefix, sizes.hidden // sizes.heads, query=parts.init.query_norm, bias=True)
        parts.experts(f"{prefix}mlp", parts.init.router)
        parts.mlp(f"{prefix}mlp.shared_expert", shared_width)
        parts.tensors.linear(f"{prefix}mlp.shared_expert_gate", 1, sizes.hidden, gain=1.0)
    return parts.config("Qwen2MoeForCausalLM", "qwen2_moe") | {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": False,
        "num_experts": sizes.experts,
        "qkv_bias": True,
        "shared_expert_intermediate_size": shared_width,
        "use_sliding_window": False,
    }


def glm4_moe(parts: Parts) -> Config:
    """GLM4-MoE: one dense layer, sigmoid routing with a correction bias, renormalised and scaled, a shared expert."""
    sizes = parts.sizes
    for layer, prefix in enumerate(parts.frame()):
        parts.attention(prefix, sizes.head_dim, bias=True)
        parts.query_key_norms(prefix, sizes.head_dim, sizes.head_dim)
        _grouped_feed_forward(parts, prefix, layer, shared_experts=1, bias=True)
    return parts.config("Glm4MoeForCausalLM", "glm4_moe") | {
        "attention_bias": True,
        "first_k_dense_replace": FIRST_SPARSE_LAYER,
        "head_dim": sizes.head_dim,
        "n_group": 1,
        "n_routed_experts": sizes.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
        "partial_rotary_factor": 0.5,
        "routed_scaling_factor": 2.5,
        "topk_group": 1,
        "use_qk_norm": True,
    }


def deepseek_v2(parts: Parts) -> Config:
    """DeepSeek-V2: latent attention, softmax routing within the best groups, scaled, two shared experts."""
    sizes = parts.sizes
    latent = LatentSizes(query_rank=None)
    for layer, prefix in enumerate(parts.frame()):
        parts.latent_attention(prefix, latent)
        _grouped_feed_forward(parts, prefix, layer, shared_experts=2, bias=False)
    return parts.config("DeepseekV2ForCausalLM", "deepseek_v2") | {
        **_deepseek_config(sizes, latent),
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy",
    }


def deepseek_v3(parts: Parts) -> Config:
    """DeepSeek-V3: latent attention with compressed queries and YaRN, sigmoid routing with a correction bias within the
    best groups, renormalised and scaled, a shared expert."""
    latent = LatentSizes(query_rank=96)
    _deepseek_v3_layers(parts, latent)
    return parts.config("DeepseekV3ForCausalLM", "deepseek_v3") | _deepseek_v3_config(parts.sizes, latent)


def deepseek_v32(parts: Parts) -> Config:
    """DeepSeek-V3.2: DeepSeek-V3 with sparse attention, whose latent keys are as wide as NPUs take them."""
    latent, index = SPARSE_LATENT, IndexSizes()
    _deepseek_v3_layers(parts, latent, index)
    return parts.config("DeepseekV32ForCausalLM", "deepseek_v32") | {
        **_deepseek_v3_config(parts.sizes, latent),
        **_index_config(index),
    }


def glm_moe_dsa(parts: Parts) -> Config:
    """GLM-5: the layers of DeepSeek-V3.2 with all experts in one group, positions without YaRN, and those of an indexer
    in pairs next to each other."""
    latent, index = SPARSE_LATENT, IndexSizes()
    _deepseek_v3_layers(parts, latent, index)
    config = parts.config("GlmMoeDsaForCausalLM", "glm_moe_dsa") | _deepseek_v3_config(parts.sizes, latent)
    del config["rope_scaling"], config["rope_theta"]
    return config | {
        **_index_config(index),
        "indexer_rope_interleave": True,
        "n_group": 1,
        "rope_interleave": True,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "topk_group": 1,
    }


def minimax_m2(parts: Parts) -> Config:
    """MiniMax-M2: every layer sparse, sigmoid routing with a correction bias, norms over all query and key heads."""
    sizes = parts.sizes
    config = parts.config("MiniMaxM2ForCausalLM", "minimax_m2")
    del config["moe_intermediate_size"]
    for prefix in parts.frame():
        parts.attention(prefix, sizes.head_dim)
        parts.query_key_norms(prefix, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim)
        parts.experts(f"{prefix}block_sparse_moe", parts.init.sigmoid_router, names=("w1", "w3", "w2"))
        parts.correction_bias(f"{prefix}block_sparse_moe.e_score_correction_bias")
    return config | {
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.expert_hidden,
        "num_local_experts": sizes.experts,
        "qk_norm_type": "per_layer",
        "rotary_dim": sizes.head_dim // 2,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
        "use_routing_bias": True,
    }


def _grouped_feed_forward(parts: Parts, prefix: str, layer: int, *, shared_experts: int, bias: bool) -> None:
    """The feed-forward part of a GLM4 or DeepSeek layer, dense or sparse; `bias` is a correction bias."""
    module = f"{prefix}mlp"
    if layer < FIRST_SPARSE_LAYER:
        parts.mlp(module, parts.sizes.expert_hidden * parts.sizes.topk)
        return
    parts.experts(module, parts.init.sigmoid_router if bias else parts.init.router)
    parts.mlp(f"{module}.shared_experts", parts.sizes.expert_hidden * shared_experts)
    if bias:
        parts.correction_bias(f"{module}.gate.e_score_correction_bias")


def _deepseek_v3_layers(parts: Parts, latent: LatentSizes, index: IndexSizes | None = None) -> None:
    """All layers; `index` of those whose attention is sparse."""
    for layer, prefix in enumerate(parts.frame()):
        parts.latent_attention(prefix, latent)
        if index is not None and latent.query_rank is not None:
            parts.indexer(prefix, index, latent.query_rank)
        _grouped_feed_forward(parts, prefix, layer, shared_experts=1, bias=True)


def _deepseek_v3_config(sizes: TinySizes, latent: LatentSizes) -> Config:
    return {
        **_deepseek_config(sizes, latent),
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
        "rope_scaling": {
            "type": "yarn",
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": sizes.max_positions // 4,
        },
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def _index_config(index: IndexSizes) -> Config:
    return {"index_head_dim": index.head_dim, "index_n_heads": index.heads, "index_topk": index.topk}


def _deepseek_config(sizes: TinySizes, latent: LatentSizes) -> Config:
    return {
        "attention_bias": False,
        "first_k_dense_replace": FIRST_SPARSE_LAYER,
        "kv_lora_rank": latent.key_rank,
        "moe_layer_freq": 1,  # SGLang reads it; transformers' own configs no longer have it
        "n_group": 4,
        "n_routed_experts": sizes.experts,
        "num_key_value_heads": sizes.heads,
        "q_lora_rank": latent.query_rank,
        "qk_nope_head_dim": latent.nope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "topk_group": 2,
        "v_head_dim": latent.value_dim,
    }


FAMILIES: dict[str, Callable[[Parts], Config]] = {
    family.__name__: family
    for family in (
        qwen3_moe,
        qwen2_moe,
        glm4_moe,
        deepseek_v2,
        deepseek_v3,
        minimax_m2,
        deepseek_v32,
        glm_moe_dsa,
    )
}
