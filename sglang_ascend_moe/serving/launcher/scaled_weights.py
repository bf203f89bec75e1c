"""Which formats of weights that a model's config.json names a host multiplies by their scales when it loads them.

Those of modelslim are named in a file of their own: see `modelslim`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec


class Block(NamedTuple):
    """Rows and columns of a weight that share a scale."""

    rows: int
    columns: int


class _Weights(msgspec.Struct):
    """Of compressed-tensors: how a group of layers is quantised."""

    num_bits: int
    type: str
    strategy: str
    symmetric: bool = True


class _Group(msgspec.Struct):
    weights: _Weights
    format: str | None = None


class _Settings(msgspec.Struct):
    """`quantization_config`, with what is asked of it. weight_block_size: of fp8."""

    quant_method: str = ""
    fmt: str = "e4m3"
    weight_block_size: tuple[int, int] | None = None
    format: str | None = None
    config_groups: dict[str, _Group] = {}


def block_of(settings: object) -> Block | None:
    """The blocks of weights in fp8 that share a scale, as DeepSeek-V3 is published; None for another format.

    settings: `quantization_config`, or what is in its place.
    """
    known = _known(settings)
    if known is None or known.quant_method != "fp8" or known.fmt != "e4m3" or known.weight_block_size is None:
        return None
    return Block(*known.weight_block_size)


def has_channels(settings: object) -> bool:
    """Whether they are integers of compressed-tensors with a scale for each channel: W8A8, or W4A8 as NPUs take it."""
    known = _known(settings)
    if known is None or known.quant_method != "compressed-tensors" or not known.config_groups:
        return False
    return all(
        (group.weights.type, group.weights.strategy, group.weights.symmetric) == ("int", "channel", True)
        and group.weights.num_bits in (4, 8)
        and (group.format or known.format or "int-quantized") == "int-quantized"
        for group in known.config_groups.values()
    )


def is_multiplied_out(settings: object) -> bool:
    """Whether a host dequantises weights of this format."""
    return block_of(settings) is not None or has_channels(settings)


def _known(settings: object) -> _Settings | None:
    if not isinstance(settings, Mapping):
        return None
    try:
        return msgspec.convert(dict(settings), _Settings)
    except msgspec.ValidationError:
        return None


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says of how the weights are quantised; None if it says nothing."""
    for key in ("quantization_config", "compression_config"):
        if isinstance(found := config.get(key), dict):
            return found
    return None
