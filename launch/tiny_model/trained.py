"""Tiny models that answer exercises: `training` made their tensors, which lie beside this module."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.launch.tiny_model.model_sizes import TRAINED_SIZES

WITH_DRAFTS = ("deepseek_v3",)
"""Families whose model has a layer for multi-token prediction."""


def tensor_file(family: str) -> Path:
    """Where the tensors of a trained model are kept; embedding and head of its draft, which are its own, are not."""
    return Path(__file__).with_name(f"{family}.safetensors")


def write_trained(folder: Path, family: str = "qwen3_moe") -> Path:
    """Write config, weights and tokenizer of the trained model of a family into `folder`, and return it.

    A model with a layer for multi-token prediction is served with and without drafts. Raises KeyError for an unknown
    family, FileNotFoundError for one that has not been trained.
    """
    write_checkpoint(folder, family, TRAINED_SIZES)
    tensors = load_file(tensor_file(family))
    if family in WITH_DRAFTS:
        draft = f"model.layers.{TRAINED_SIZES.layers}"
        tensors[f"{draft}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{draft}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
        config = folder / "config.json"
        changed = json.loads(config.read_text()) | {"num_nextn_predict_layers": 1}
        config.write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
