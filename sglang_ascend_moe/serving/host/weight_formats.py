"""In which formats the weights of a checkpoint are stored that a host multiplies out, and which of them it keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.host.tensor_headers import headers_of
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE, tensor_formats
from sglang_ascend_moe.serving.launcher.scaled_weights import Block, block_of, has_channels, settings_of

FP8, EIGHT_BITS, FOUR_BITS, STATIC = "FP8", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "W8A8"
"""Formats by modelslim's words, and that of DeepSeek-V3 as it is published. STATIC: rows have a scale and an offset
that are known before, for which a host, that does not quantise them, has no use."""

NUMBERS_IN_BYTE = {FP8: 1, EIGHT_BITS: 1, FOUR_BITS: 2, STATIC: 1}
UNCHANGED = "FLOAT"
_EXPERT = re.compile(r".*\.experts\.\d+\.\w+\.weight")


class StoredFormats(NamedTuple):
    """kinds: of each quantised weight by its name; of others it is modelslim's word, or missing. block: of FP8.

    named_by: the file that says so.
    """

    kinds: Mapping[str, str]
    block: Block | None
    named_by: str

    @property
    def integer_experts(self) -> bool:
        """Whether the routed experts, of all layers, are integers with a scale for each channel: then experts of a host
        multiply them as they are, those of 4 bits as 8. Every other weight is dequantised."""
        return {kind for name, kind in self.kinds.items() if is_expert(name)} in ({EIGHT_BITS}, {FOUR_BITS}, _BOTH)


_BOTH = {EIGHT_BITS, FOUR_BITS}


def is_expert(name: str) -> bool:
    """Whether a tensor is the weight of a routed expert."""
    return _EXPERT.fullmatch(name) is not None


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
        elif is_expert(name):
            kinds[name] = UNCHANGED
    return StoredFormats(kinds, block, "config.json")


def _settings(folder: Path) -> Mapping[str, object] | None:
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return settings_of(config) if isinstance(config, dict) else None
