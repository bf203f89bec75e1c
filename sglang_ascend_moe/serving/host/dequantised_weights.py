"""Checkpoints of modelslim on a host: weights are multiplied by their scales when they are loaded, and served as if
they had never been quantised. SGLang computes with the quantised ones on NPUs only.

`as_plain_model` and `dequantised` are hooks: see `host_hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, stack

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE, tensor_formats

UNCHANGED = "FLOAT"
FORMATS = ("W8A8_DYNAMIC", "W4A8_DYNAMIC")
_NEEDED = frozenset(("weight", "weight_scale"))


def as_plain_model(_original: Callable[[Any], Any], _config: Any) -> None:
    """Around `ModelConfig._find_quant_modelslim_config`: SGLang builds the layers of a model that is not quantised."""


def dequantised(
    original: Callable[..., Iterator[tuple[str, Tensor]]], loader: Any, source: Any, **keywords: Any
) -> Iterator[tuple[str, Tensor]]:
    """Around `DefaultModelLoader._get_weights_iterator`: names and tensors of a checkpoint, dequantised.

    Raises `Unsupported` for a format that is not one of `FORMATS`, `InvalidInput` for a weight without its scale.
    """
    folder = Path(source.model_or_path)
    formats = tensor_formats(folder)
    weights = original(loader, source, **keywords)
    return weights if not formats else multiply_out(weights, formats, folder)


def multiply_out(
    weights: Iterable[tuple[str, Tensor]], formats: dict[str, str], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint in which each `NAME.weight` of `FORMATS` stands for itself, its scale and what belongs to
    it. formats: of the weights, by name.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        layer, _, part = name.rpartition(".")
        kind = formats.get(f"{layer}.weight", UNCHANGED)
        if kind == UNCHANGED or part == "bias":
            yield name, tensor
            continue
        if kind not in FORMATS or part == "weight_scale_second" or (part == "weight_offset" and bool(tensor.any())):
            raise Unsupported(
                f"{folder}: {name} is {kind}, which a host does not dequantise; use a checkpoint in W8A8_DYNAMIC or"
                " W4A8_DYNAMIC, symmetric and with a scale per channel"
            )
        if part not in _NEEDED:
            continue
        parts = waiting.setdefault(layer, {})
        parts[part] = tensor
        if parts.keys() == _NEEDED:
            del waiting[layer]
            numbers = parts["weight"] if kind == "W8A8_DYNAMIC" else unpack(parts["weight"])
            yield f"{layer}.weight", numbers.float() * parts["weight_scale"].float()
    for layer, parts in waiting.items():
        (missing,) = _NEEDED - parts.keys()
        raise InvalidInput(
            f"{folder}: {layer}.{missing} is missing, though {MODELSLIM_FILE} names it; use a whole copy"
        )


def unpack(packed: Tensor) -> Tensor:
    """int8 [to / 2, from], the even channel in the low half of each -> int8 [to, from], -8 to 7."""
    return stack(((packed << 4) >> 4, packed >> 4), dim=1).flatten(0, 1)
