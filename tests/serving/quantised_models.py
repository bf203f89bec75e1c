"""Tiny checkpoints as modelslim writes them: `quant_model_description.json` beside tensors that it names, each product
of a token's row quantised with a scale for each channel, the experts to 8 or 4 bits, all others to 8.

The formats are those of modelslim's saver `ascendV1`, version 1.0.0.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE

BITS = {"W8A8_DYNAMIC": 8, "W4A8_DYNAMIC": 4}
"""Of the weights, by what modelslim calls the format of the experts."""

PARTS = 16
"""Ranks among which the inputs of a `down_proj` of 4 bits may be divided, each with a sum of its own."""

PLAIN_FILE = "model.safetensors"
WEIGHTS_FILE = "quant_model_weights.safetensors"

_EXPERT = re.compile(r".*\.experts\.\d+\.\w+\.weight")
_PRODUCT = re.compile(r".*\.(self_attn|mlp|shared_experts?)\.\w+_proj(_with_mqa)?\.weight")
# modelslim leaves these as they are: SGLang takes the second apart for latent attention.
_KEPT = re.compile(r".*\.(kv_b_proj|eh_proj)\.weight")


class Quantised(NamedTuple):
    """numbers: int8 [..., to, from], of as many bits as asked. scales: fp32 [..., to, 1]."""

    numbers: Tensor
    scales: Tensor


def by_channel(weight: Tensor, bits: int) -> Quantised:
    """The largest weight of each channel becomes the largest number. weight: [..., to, from]."""
    largest = 2 ** (bits - 1) - 1
    values = weight.float()
    scales = values.abs().amax(dim=-1, keepdim=True) / largest
    return Quantised((values / scales).round().clamp(-largest - 1, largest).to(torch.int8), scales)


def pack(numbers: Tensor) -> Tensor:
    """Two channels in one int8, the even one in its low half. numbers: [..., to, from], 4 bits each."""
    even, odd = numbers.unflatten(-2, (-1, 2)).unbind(-2)
    return (even & 15) | (odd << 4)


def eights(quantised: Quantised, parts: int) -> Tensor:
    """What an NPU's product of rows of 8 by weights of 4 bits leaves out: fp32 [..., to, parts]."""
    scaled = quantised.numbers.float() * quantised.scales
    return 8 * scaled.unflatten(-1, (parts, -1)).sum(-1)


def expert_tensors(weight: Tensor, kind: str, *, down: bool) -> dict[str, Tensor]:
    """What a checkpoint has of one projection of experts, [..., to, from], by the endings of names."""
    quantised = by_channel(weight, BITS[kind])
    found = {"weight_scale": quantised.scales, "weight_offset": torch.zeros_like(quantised.scales)}
    if BITS[kind] == 8:
        return found | {"weight": quantised.numbers}
    return found | {"weight": pack(quantised.numbers), "scale_bias": eights(quantised, PARTS if down else 1)}


def write_quantised(checkpoint: Path, folder: Path, kind: str) -> Path:
    """Quantise a tiny model, with experts of `kind`, into `folder`, which must not exist; returns it."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors: dict[str, Tensor] = {}
    described: dict[str, object] = {}
    for name, tensor in load_file(checkpoint / PLAIN_FILE).items():
        stem, own, found = name.removesuffix(".weight"), _format(name, kind), {name: tensor}
        if own != "FLOAT":
            parts = expert_tensors(tensor, own, down=stem.endswith("down_proj"))
            found = {f"{stem}.{ending}": part for ending, part in parts.items()}
        tensors |= {key: value.contiguous() for key, value in found.items()}
        described |= dict.fromkeys(found, own)
    described |= {"model_quant_type": kind, "version": "1.0.0", "metadata": {}, "group_size": 0}
    (folder / MODELSLIM_FILE).write_text(json.dumps(described, indent=2))
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def write_dequantised(checkpoint: Path, folder: Path, kind: str) -> Path:
    """The same model with the weights in fp32 that the quantised ones stand for; returns `folder`."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / PLAIN_FILE)
    for name, tensor in tensors.items():
        if (own := _format(name, kind)) != "FLOAT":
            numbers, scales = by_channel(tensor, BITS[own])
            tensors[name] = numbers.float() * scales
    save_file(tensors, folder / PLAIN_FILE, metadata={"format": "pt"})
    return folder


def _format(name: str, kind: str) -> str:
    if _EXPERT.fullmatch(name):
        return kind
    return "W8A8_DYNAMIC" if _PRODUCT.fullmatch(name) and not _KEPT.fullmatch(name) else "FLOAT"
