"""In which formats the weights of a checkpoint are stored that a host multiplies out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.host.tensor_headers import headers_of
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE, tensor_formats
from sglang_ascend_moe.serving.launcher.scaled_weights import Block, block_of, has_channels, settings_of

FP8, EIGHT_BITS, FOUR_BITS = "FP8", "W8A8_DYNAMIC", "W4A8_DYNAMIC"
"""Formats by modelslim's words, and that of DeepSeek-V3 as it is published."""

NUMBERS_IN_BYTE = {FP8: 1, EIGHT_BITS: 1, FOUR_BITS: 2}


class StoredFormats(NamedTuple):
    """kinds: of each quantised weight by its name; of others it is modelslim's word, or missing. block: of FP8.

    named_by: the file that says so.
    """

    kinds: Mapping[str, str]
    block: Block | None
    named_by: str


def formats_of(folder: Path) -> StoredFormats | None:
    """Of the checkpoint in `folder`; None if a host loads it as it is.

    Raises as `tensor_formats`, and `Unsupported` for weights in fp8 that have another name than `NAME.weight`.
    """
    if described := tensor_formats(folder):
        return StoredFormats(described, None, MODELSLIM_FILE)
    settings = _settings(folder)
    block = block_of(settings)
    if block is None and not has_channels(settings):
        return None
    headers = dict(headers_of(folder))
    kinds = {}
    for name, header in headers.items():
        scale = headers.get(f"{name}_scale")
        if block is not None and header.dtype == "F8_E4M3":
            if not name.endswith(".weight"):
                raise Unsupported(
                    f"{folder}: {name} is fp8 of several experts at once, which a host does not dequantise; use a"
                    " checkpoint in which each expert has weights of its own, or one in bfloat16"
                )
            kinds[name] = FP8
        elif block is None and header.dtype == "I8" and name.endswith(".weight"):
            # Two channels in a byte, if it is a scale for each channel.
            packed = scale is not None and scale.shape[0] == 2 * header.shape[0]
            kinds[name] = FOUR_BITS if packed else EIGHT_BITS
    return StoredFormats(kinds, block, "config.json")


def _settings(folder: Path) -> Mapping[str, object] | None:
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return settings_of(config) if isinstance(config, dict) else None
