"""A tiny Qwen3-VL-MoE: the text model of the tiny checkpoints, with a random vision tower and its processor's files."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from sglang_ascend_moe.launch.tiny_model.weights import RandomTensors

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
"""What stands for an image in a prompt."""
SIZES = TinySizes()
DEPTH = 3
HIDDEN = 64
HEADS = 4
PATCH = 8
FRAMES = 2
MERGED = 2
GRID = 8
# Each dimension of a rotary frequency belongs to time, height or width.
SECTIONS = [6, 5, 5]


def write_vision_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write config, weights, tokenizer and processor of the model into `folder`, and return it."""
    write_checkpoint(folder, sizes=SIZES, seed=seed)
    text = load_file(folder / "model.safetensors")
    tensors = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in text.items()}
    save_file(_fused(tensors) | _vision_tower(seed), folder / "model.safetensors", metadata={"format": "pt"})
    first = _add_tokens(folder / "tokenizer.json")
    _write(folder / "config.json", _config(json.loads((folder / "config.json").read_text()), first))
    _write(folder / "preprocessor_config.json", _pixels("image_processor_type", "Qwen2VLImageProcessorFast"))
    _write(folder / "video_preprocessor_config.json", _pixels("video_processor_type", "Qwen3VLVideoProcessor"))
    return folder


def picture(seed: int, width: int, height: int) -> str:
    """An image of coarse random colours, as a data URL."""
    colours = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer in two tensors, as published checkpoints have them."""
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(SIZES.layers):
        experts = f"model.language_model.layers.{layer}.mlp.experts"

        def stacked(part: str, experts: str = experts) -> torch.Tensor:
            return torch.stack([tensors[f"{experts}.{expert}.{part}.weight"].T for expert in range(SIZES.experts)])

        fused[f"{experts}.gate_up_proj"] = torch.cat([stacked("gate_proj"), stacked("up_proj")], dim=-1).contiguous()
        fused[f"{experts}.down_proj"] = stacked("down_proj").contiguous()
    return fused


def _vision_tower(seed: int) -> dict[str, torch.Tensor]:
    tensors = RandomTensors(seed)

    def linear(name: str, out_features: int, in_features: int) -> None:
        tensors.linear(f"model.visual.{name}", out_features, in_features, gain=1.0)
        tensors.normal(f"model.visual.{name}.bias", out_features, std=0.1)

    def norm(name: str, width: int) -> None:
        tensors.norm(f"model.visual.{name}", width)
        tensors.normal(f"model.visual.{name}.bias", width, std=0.1)

    pixels = (3, FRAMES, PATCH, PATCH)
    std = (3 * FRAMES * PATCH * PATCH) ** -0.5
    tensors.normal("model.visual.patch_embed.proj.weight", HIDDEN, *pixels, std=std)
    tensors.normal("model.visual.patch_embed.proj.bias", HIDDEN, std=0.1)
    tensors.normal("model.visual.pos_embed.weight", GRID * GRID, HIDDEN, std=0.5)
    for block in range(DEPTH):
        norm(f"blocks.{block}.norm1", HIDDEN)
        norm(f"blocks.{block}.norm2", HIDDEN)
        linear(f"blocks.{block}.attn.qkv", 3 * HIDDEN, HIDDEN)
        linear(f"blocks.{block}.attn.proj", HIDDEN, HIDDEN)
        linear(f"blocks.{block}.mlp.linear_fc1", 2 * HIDDEN, HIDDEN)
        linear(f"blocks.{block}.mlp.linear_fc2", HIDDEN, 2 * HIDDEN)
    wide = HIDDEN * MERGED**2
    for merger, width in (("merger", HIDDEN), *((f"deepstack_merger_list.{place}", wide) for place in range(DEPTH))):
        norm(f"{merger}.norm", width)
        linear(f"{merger}.linear_fc1", wide, wide)
        linear(f"{merger}.linear_fc2", SIZES.hidden, wide)
    return tensors.by_name


def _add_tokens(path: Path) -> int:
    """Put the tokens that stand for vision in place of the last ones of the vocabulary; the id of the first."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first = len(vocabulary) - len(VISION_TOKENS)
    replaced = {token for token, place in vocabulary.items() if place >= first}
    merges = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) not in replaced]
    tokenizer["model"]["merges"] = merges
    for token in replaced:
        del vocabulary[token]
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    for place, token in enumerate(VISION_TOKENS, first):
        vocabulary[token] = place
        tokenizer["added_tokens"].append({"id": place, "content": token, **plain})
    path.write_text(json.dumps(tokenizer))
    return first


def _config(text: dict[str, Any], first: int) -> dict[str, Any]:
    start, end, image, video = range(first, first + len(VISION_TOKENS))
    scaling = {"mrope_interleaved": True, "mrope_section": SECTIONS, "rope_type": "default"}
    return {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": {**text, "model_type": "qwen3_vl_moe_text", "rope_scaling": scaling},
        "vision_config": {
            "model_type": "qwen3_vl_moe",
            "deepstack_visual_indexes": list(range(DEPTH)),
            "depth": DEPTH,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": HIDDEN,
            "in_channels": 3,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": HEADS,
            "num_position_embeddings": GRID * GRID,
            "out_hidden_size": SIZES.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGED,
            "temporal_patch_size": FRAMES,
        },
    }


def _pixels(kind: str, name: str) -> dict[str, Any]:
    return {
        kind: name,
        "processor_class": "Qwen3VLProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "merge_size": MERGED,
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES,
        "size": {"shortest_edge": (2 * PATCH * MERGED) ** 2, "longest_edge": (16 * PATCH * MERGED) ** 2},
    }
