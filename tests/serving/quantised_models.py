"""Tiny checkpoints that are quantised: each product of a token's row with a scale for each channel, the experts to 8 or
4 bits, all others to 8; or all to fp8 with a scale for each block.

The formats are those of modelslim's saver `ascendV1`, version 1.0.0 (`quant_model_description.json` beside tensors that
it names), of compressed-tensors as SGLang takes them on NPUs, and of DeepSeek-V3 as it is published.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE

BITS = {"W8A8_DYNAMIC": 8, "W4A8_DYNAMIC": 4}
"""Of the weights, by what modelslim calls the format of the experts."""

STATIC = "W8A8"
"""What modelslim calls dense layers whose rows are quantised by a scale and an offset that the checkpoint has."""

FP8 = "FP8"
BLOCK = (32, 48)
"""Rows and columns of a weight that share a scale; 128 each in published checkpoints."""

PARTS = 16
"""Ranks among which the inputs of a `down_proj` of 4 bits may be divided, each with a sum of its own."""

PLAIN_FILE = "model.safetensors"
WEIGHTS_FILE = "quant_model_weights.safetensors"

_EXPERT = re.compile(r".*\.experts\.\d+\.\w+\.weight")
_PRODUCT = re.compile(r".*\.(self_attn|mlp|shared_experts?)\.\w+_proj(_with_mqa)?\.weight")
# modelslim leaves this as it is: SGLang takes it apart for latent attention.
_KEPT = re.compile(r".*\.kv_b_proj\.weight")


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


def static_tensors(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """What a checkpoint has of a dense layer of `STATIC`, by the endings of names; the bias is within `quant_bias`.

    It is rounded to a step of the products, which is smaller here than where rows are quantised by it.
    """
    numbers, scales = by_channel(weight, 8)
    step, offset = torch.tensor([1e-5]), torch.tensor([-12.0])
    factors = (step * scales).squeeze(-1)
    added = torch.zeros(len(weight)) if bias is None else bias.double() / factors.double()
    return {
        "weight": numbers, "input_scale": step, "input_offset": offset, "deq_scale": factors,
        "quant_bias": (added - offset * numbers.double().sum(-1)).round().to(torch.int32),
    }  # fmt: skip


def expert_tensors(weight: Tensor, kind: str, *, down: bool) -> dict[str, Tensor]:
    """What a checkpoint has of one projection of experts, [..., to, from], by the endings of names."""
    quantised = by_channel(weight, BITS[kind])
    found = {"weight_scale": quantised.scales, "weight_offset": torch.zeros_like(quantised.scales)}
    if BITS[kind] == 8:
        return found | {"weight": quantised.numbers}
    return found | {"weight": pack(quantised.numbers), "scale_bias": eights(quantised, PARTS if down else 1)}


def by_block(weight: Tensor) -> Quantised:
    """The largest weight of each block becomes the largest number of E4M3; those at the ends are cut.

    Returns scales [blocks of to, blocks of from].
    """
    whole = F.pad(weight.float(), (0, -weight.shape[1] % BLOCK[1], 0, -weight.shape[0] % BLOCK[0]))
    blocks = whole.unflatten(1, (-1, BLOCK[1])).unflatten(0, (-1, BLOCK[0]))
    scales = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    numbers = (blocks / scales[:, None, :, None]).flatten(2, 3).flatten(0, 1)[: weight.shape[0], : weight.shape[1]]
    return Quantised(numbers.to(torch.float8_e4m3fn), scales)


def dequantised(weight: Tensor, kind: str) -> Tensor:
    """What the numbers of a weight in a format stand for, in fp32."""
    if kind != FP8:
        numbers, scales = by_channel(weight, BITS[kind])
        return numbers.float() * scales
    numbers, scales = by_block(weight)
    found = numbers.float()
    for row, column in np.ndindex(*scales.shape):
        block = found[row * BLOCK[0] : (row + 1) * BLOCK[0], column * BLOCK[1] : (column + 1) * BLOCK[1]]
        block *= scales[row, column]
    return found


def write_quantised(checkpoint: Path, folder: Path, kind: str) -> Path:
    """Quantise a tiny model as modelslim does, with experts of `kind`, into `folder`, which must not exist; returns
    it.
    """
    return _write_described(folder, kind, *_quantise(checkpoint, folder, kind))


def write_static(checkpoint: Path, folder: Path, kind: str) -> Path:
    """The same with dense layers of `STATIC`."""
    described, tensors = _quantise(checkpoint, folder, kind)
    plain = load_file(checkpoint / PLAIN_FILE)
    for name in [name for name in described if name in plain and not _EXPERT.fullmatch(name)]:
        if described[name] == "FLOAT":
            continue
        stem = name.removesuffix(".weight")
        for ending in ("weight", "weight_scale", "weight_offset", "bias"):
            described.pop(f"{stem}.{ending}", None), tensors.pop(f"{stem}.{ending}", None)
        parts = static_tensors(plain[name], plain.get(f"{stem}.bias"))
        found = {f"{stem}.{ending}": part for ending, part in parts.items()}
        tensors |= found
        described |= dict.fromkeys(found, STATIC)
    return _write_described(folder, kind, described, tensors)


def _write_described(folder: Path, kind: str, described: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    described |= {"model_quant_type": kind, "version": "1.0.0", "metadata": {}, "group_size": 0}
    (folder / MODELSLIM_FILE).write_text(json.dumps(described, indent=2))
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def write_compressed(checkpoint: Path, folder: Path, kind: str) -> Path:
    """The same tensors as compressed-tensors has them: named by a config.json, without offsets."""
    described, tensors = _quantise(checkpoint, folder, kind)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("weight_offset")}
    plain = [name.removesuffix(".weight") for name, own in described.items() if own == "FLOAT"]

    def group(bits: int, *targets: str) -> dict[str, Any]:
        weights = {"num_bits": bits, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
        rows = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
        return {"targets": targets, "weights": weights, "input_activations": rows}

    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": plain,
        "config_groups": {"group_0": group(8, "Linear"), "group_1": group(BITS[kind], "re:.*[.]experts[.].*")},
    }
    _configure(folder, settings)
    save_file(tensors, folder / PLAIN_FILE, metadata={"format": "pt"})
    return folder


def write_fp8(checkpoint: Path, folder: Path, _kind: str = FP8) -> Path:
    """Quantise a tiny model as DeepSeek-V3 is published, by blocks of `BLOCK`."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / PLAIN_FILE)
    for name in [name for name in tensors if _format(name, FP8) == FP8]:
        tensors[name], scales = by_block(tensors[name])
        tensors[f"{name}_scale_inv"] = scales
    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": BLOCK}
    _configure(folder, settings)
    save_file(tensors, folder / PLAIN_FILE, metadata={"format": "pt"})
    return folder


def write_dequantised(checkpoint: Path, folder: Path, kind: str) -> Path:
    """The same model with the weights in fp32 that the quantised ones stand for; returns `folder`."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / PLAIN_FILE)
    for name, tensor in tensors.items():
        if (own := _format(name, kind)) != "FLOAT":
            tensors[name] = dequantised(tensor, own)
    save_file(tensors, folder / PLAIN_FILE, metadata={"format": "pt"})
    return folder


def _quantise(checkpoint: Path, folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Copies what is no tensor; returns the format of each tensor, and them."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, tensor in load_file(checkpoint / PLAIN_FILE).items():
        stem, own, found = name.removesuffix(".weight"), _format(name, kind), {name: tensor}
        if own != "FLOAT":
            parts = expert_tensors(tensor, own, down=stem.endswith("down_proj"))
            found = {f"{stem}.{ending}": part for ending, part in parts.items()}
        tensors |= {key: value.contiguous() for key, value in found.items()}
        described |= dict.fromkeys(found, own)
    return described, tensors


def _configure(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))


def _format(name: str, kind: str) -> str:
    if _EXPERT.fullmatch(name):
        return kind
    if not _PRODUCT.fullmatch(name):
        return "FLOAT"
    if kind == FP8:
        return FP8
    return "FLOAT" if _KEPT.fullmatch(name) else "W8A8_DYNAMIC"
