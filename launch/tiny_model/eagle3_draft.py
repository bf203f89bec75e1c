"""A dense EAGLE3 draft for a tiny checkpoint, made from its own weights, so that much of what it drafts is right."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sglang_ascend_moe.launch.tiny_model.model_sizes import Init, TinySizes

DRAFTED_INIT = Init(value_out=0.2, expert_out=0.3)
"""Gains of a model that is drafted for: its layers change a row only a little, so that what comes next depends mostly
on the last token."""
SHARP = 2.0
"""Gain of queries and keys with which a token attends to itself."""


def write_eagle3_draft(folder: Path, model: Path, sizes: TinySizes) -> Path:
    """Write into `folder` a draft for `model`, a checkpoint of `sizes`, and return it.

    It says what the head of the model says of the embedding of the last token. `hidden` is a multiple of `head_dim`.
    """
    folder.mkdir()
    hidden, kv_heads = sizes.hidden, sizes.hidden // sizes.head_dim
    groups = max(1, sizes.heads // kv_heads)
    one = torch.eye(hidden, dtype=torch.bfloat16)
    by_head = one.view(kv_heads, sizes.head_dim, hidden)
    own = by_head.repeat_interleave(groups, 0).reshape(groups * hidden, hidden)
    nothing = torch.zeros(hidden, hidden, dtype=torch.bfloat16)

    def of_embedding(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight, torch.zeros_like(weight)], dim=1)

    tensors = {
        "fc.weight": torch.zeros(hidden, 3 * hidden, dtype=torch.bfloat16),
        "midlayer.self_attn.q_proj.weight": of_embedding(SHARP * own),
        "midlayer.self_attn.k_proj.weight": of_embedding(SHARP * one),
        "midlayer.self_attn.v_proj.weight": of_embedding(one),
        "midlayer.self_attn.o_proj.weight": own.t().contiguous() / groups,
        "midlayer.mlp.gate_proj.weight": nothing,
        "midlayer.mlp.up_proj.weight": nothing.clone(),
        "midlayer.mlp.down_proj.weight": nothing.clone(),
        "lm_head.weight": load_file(model / "model.safetensors")["lm_head.weight"],
    }
    for norm in ("midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm", "norm"):
        tensors[f"{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": sizes.vocab,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]},
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "max_position_embeddings": sizes.max_positions,
        "model_type": "llama",
        "num_attention_heads": groups * kv_heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": sizes.vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
