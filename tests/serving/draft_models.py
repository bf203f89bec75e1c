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
from sglang_ascend_moe.launch.tiny_model.eagle3_draft import DRAFTED_INIT, write_eagle3_draft
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from tests.serving.family_prompts import prompts_of_lengths

PROMPTS = prompts_of_lengths(1, 7, 33, 64, 120, 150, 200, 300)
"""What servers that draft are asked."""
QUIET = 0.1
"""By which the outputs of layers are multiplied that are to change a row little."""
MTP_SIZES = TinySizes(layers=2)
EAGLE3_SIZES = TinySizes()


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
    """A model, and a dense EAGLE3 draft for it."""
    model = write_checkpoint(folder / "model", family, EAGLE3_SIZES, init=DRAFTED_INIT)
    return Drafted(model, write_eagle3_draft(folder / "draft", model, EAGLE3_SIZES), model)


def _left_half(hidden: int) -> torch.Tensor:
    """Of two rows side by side the left one, [hidden, 2 * hidden]."""
    return torch.eye(hidden, 2 * hidden, dtype=torch.bfloat16)


def _update(config: Path, **values: Any) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | values, indent=2, sort_keys=True))
