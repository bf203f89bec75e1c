"""Draft models for the tiny checkpoints, made from their own weights, so that much of what they draft is right.

In both, the layers before the last change a row only a little, and what comes next depends mostly on the last token.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.launch.tiny_model.model_sizes import Init, TinySizes
from tests.serving.family_prompts import prompts_of_lengths

PROMPTS = prompts_of_lengths(1, 7, 33, 64, 120, 150, 200, 300)
"""What servers that draft are asked."""
QUIET = 0.1
"""By which the outputs of layers are multiplied that are to change a row little."""
SHARP = 2.0
"""Gain of queries and keys with which a token attends to itself."""
MTP_SIZES = TinySizes(layers=2)
EAGLE3_SIZES = TinySizes()
EAGLE3_INIT = Init(value_out=0.2, expert_out=0.3)


class Drafted(NamedTuple):
    """A model, its draft model where that lies in a folder of its own, and the model as others than SGLang read it."""

    model: Path
    draft: Path | None
    plain: Path


def write_drafted(folder: Path, family: str) -> Drafted:
    """The model of a family with its draft: EAGLE3, or a layer for multi-token prediction (MTP)."""
    if family in ("qwen3_moe", "minimax_m2"):
        return write_eagle3_checkpoints(folder, family)
    return write_mtp_checkpoint(folder, family)


def write_mtp_checkpoint(folder: Path, family: str, sizes: TinySizes = MTP_SIZES) -> Drafted:
    """A DeepSeek-V3 or GLM4-MoE with a layer that predicts the token after the next: a copy of its last layer, which
    gets the embedding of the next token instead of the rows of the layers before."""
    plain = write_checkpoint(folder / "plain", family, sizes)
    model = Path(shutil.copytree(plain, folder / "model"))
    tensors = load_file(plain / "model.safetensors")
    last, mtp = f"model.layers.{sizes.layers - 1}.", f"model.layers.{sizes.layers}."
    for name in tensors:
        if not name.startswith(last) and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= QUIET
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    copies = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(last)}
    tensors |= {mtp + name.removeprefix(last): tensor for name, tensor in copies.items()}
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{mtp}{norm}.weight"] = torch.ones(sizes.hidden, dtype=torch.bfloat16)
    tensors[f"{mtp}eh_proj.weight"] = _left_half(sizes.hidden)
    for name, shared in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        tensors[f"{mtp}{name}.weight"] = tensors[f"{shared}.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    _update(model / "config.json", num_nextn_predict_layers=1)
    return Drafted(model, None, plain)


def write_eagle3_checkpoints(folder: Path, family: str) -> Drafted:
    """A model, and a dense EAGLE3 draft for it that says what the head says of the embedding of the last token."""
    model = write_checkpoint(folder / "model", family, EAGLE3_SIZES, init=EAGLE3_INIT)
    draft = folder / "draft"
    draft.mkdir()
    sizes = EAGLE3_SIZES
    hidden, groups = sizes.hidden, sizes.heads // sizes.kv_heads
    one = torch.eye(hidden, dtype=torch.bfloat16)
    by_head = one.view(sizes.kv_heads, sizes.head_dim, hidden)
    own = by_head.repeat_interleave(groups, 0).reshape(sizes.heads * sizes.head_dim, hidden)
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
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
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
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": sizes.vocab,
    }
    (draft / "config.json").write_text(json.dumps(config))
    return Drafted(model, draft, model)


def _left_half(hidden: int) -> torch.Tensor:
    """Of two rows side by side the left one, [hidden, 2 * hidden]."""
    return torch.eye(hidden, 2 * hidden, dtype=torch.bfloat16)


def _update(config: Path, **values: Any) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | values, indent=2, sort_keys=True))
