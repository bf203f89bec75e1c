"""Quantised checkpoints on a host: weights are multiplied by their scales when they are loaded, and served as if they
had never been quantised, but for experts that are kept (`kept_experts`). SGLang computes with such weights on
accelerators only.

`as_plain_model`, `as_plain_checkpoint` and `dequantised` are hooks: see `host_hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving.host import kept_experts
from sglang_ascend_moe.serving.host.weight_formats import (
    EIGHT_BITS,
    FOUR_BITS,
    FP8,
    STATIC,
    UNCHANGED,
    StoredFormats,
    formats_of,
    is_expert,
)
from sglang_ascend_moe.serving.launcher.scaled_weights import Block, is_multiplied_out

PARTS = {
    EIGHT_BITS: {"weight", "weight_scale"},
    FOUR_BITS: {"weight", "weight_scale"},
    FP8: {"weight", "weight_scale_inv"},
    STATIC: {"weight", "deq_scale", "input_scale", "input_offset", "quant_bias"},
}
"""Which tensors of a layer stand for its weight, by its format; of `STATIC` for its bias, too."""


def as_plain_model(_original: Callable[[Any], Any], _config: Any) -> None:
    """Around `ModelConfig._find_quant_modelslim_config`: SGLang builds the layers of a model that is not quantised."""


def as_plain_checkpoint(original: Callable[[Any], Any], config: Any) -> Any:
    """Around `ModelConfig._parse_quant_hf_config`: likewise, for formats that config.json names."""
    found = original(config)
    # What lies on a hub has to be read before anything is known of its tensors.
    return None if is_multiplied_out(found) and Path(config.model_path).is_dir() else found


def dequantised(
    original: Callable[..., Iterator[tuple[str, Tensor]]], loader: Any, source: Any, **keywords: Any
) -> Iterator[tuple[str, Tensor]]:
    """Around `DefaultModelLoader._get_weights_iterator`: names and tensors of a checkpoint, dequantised or kept.

    Raises `Unsupported` for a format that is not one of `PARTS` or that nothing says, `InvalidInput` for a layer
    without one of them.
    """
    folder = Path(source.model_or_path)
    stored = formats_of(folder)
    weights = original(loader, source, **keywords)
    if stored is None:
        return weights if folder.is_dir() else _without_integers(weights, source.model_or_path)
    return multiply_out(weights, stored, folder, keeps_experts=kept_experts.are_kept(source.model_config))


def _without_integers(weights: Iterable[tuple[str, Tensor]], path: str) -> Iterator[tuple[str, Tensor]]:
    """Of a hub, whose files say nothing before they are read: SGLang would take integers for the weights."""
    for name, tensor in weights:
        if name.endswith(".weight") and not tensor.is_floating_point():
            raise Unsupported(
                f"{path}: {name} is {tensor.dtype}, so the checkpoint is quantised; download it, and give its folder"
            )
        yield name, tensor


def multiply_out(
    weights: Iterable[tuple[str, Tensor]], stored: StoredFormats, folder: Path, *, keeps_experts: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint in which each `NAME.weight` in one of `PARTS` stands for those and what belongs to them.

    keeps_experts: integers of experts stay int8, beside their scales in fp32.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        layer, _, part = name.rpartition(".")
        kind = stored.kinds.get(f"{layer}.weight", UNCHANGED)
        if kind == UNCHANGED or part == "bias":
            yield name, tensor
            continue
        if kind not in PARTS or part == "weight_scale_second" or (part == "weight_offset" and bool(tensor.any())):
            raise Unsupported(
                f"{folder}: {name} is {kind}, which a host does not dequantise; use a checkpoint in W8A8, W8A8_DYNAMIC"
                " or W4A8_DYNAMIC, symmetric and with a scale per channel, or in fp8 with a scale per block"
            )
        if part not in PARTS[kind]:
            continue
        parts = waiting.setdefault(layer, {})
        parts[part] = tensor
        if parts.keys() == PARTS[kind]:
            del waiting[layer]
            if kind == STATIC and f"{layer}.bias" not in stored.kinds:
                yield from _bias(layer, parts)
            name, numbers, scale = f"{layer}.weight", parts["weight"], _scale(kind, parts)
            numbers = unpack(numbers) if kind == FOUR_BITS else numbers
            if keeps_experts and kind != FP8 and is_expert(name):
                yield name, numbers
                yield f"{name}_scale", scale
            else:
                spread_scale = scale if stored.block is None else spread(scale, stored.block, numbers.shape)
                yield name, numbers.float() * spread_scale
    for layer, parts in waiting.items():
        kind = stored.kinds[f"{layer}.weight"]
        missing = min(PARTS[kind] - parts.keys())
        raise InvalidInput(
            f"{folder}: {layer}.{missing} is missing, though {stored.named_by} names it; use a whole copy"
        )


def _scale(kind: str, parts: Mapping[str, Tensor]) -> Tensor:
    """fp32 [to, 1], or of blocks."""
    if kind != STATIC:
        return parts["weight_scale_inv" if kind == FP8 else "weight_scale"].float()
    return (_of_products(parts) / parts["input_scale"].double())[:, None].float()


def _of_products(parts: Mapping[str, Tensor]) -> Tensor:
    """The scales of a layer of `STATIC` by that of its rows, fp64 [to]; those for float16 are bits in int64."""
    scales = parts["deq_scale"]
    return (scales.to(torch.int32).view(torch.float32) if scales.dtype == torch.int64 else scales).double()


def _bias(layer: str, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The bias of a layer of `STATIC`, if it has one: what is added to its products besides the offset of its rows."""
    of_offset = parts["input_offset"].double() * parts["weight"].double().sum(1)
    added = parts["quant_bias"].double() + of_offset
    # Without a bias it is what rounding has left.
    if bool((added.abs() > 0.5).any()):
        yield f"{layer}.bias", (added * _of_products(parts)).float()


def spread(scale: Tensor, block: Block, shape: Iterable[int]) -> Tensor:
    """The scale of each number of a weight [to, from]; blocks at its ends may be cut."""
    rows, columns = shape
    return scale.repeat_interleave(block.rows, 0)[:rows].repeat_interleave(block.columns, 1)[:, :columns]


def unpack(packed: Tensor) -> Tensor:
    """int8 [to / 2, from], the even channel in the low half of each -> int8 [to, from], -8 to 7."""
    return torch.stack(((packed << 4) >> 4, packed >> 4), dim=1).flatten(0, 1)
