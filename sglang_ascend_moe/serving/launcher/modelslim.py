"""What modelslim writes beside the weights that it has quantised: the format of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sglang_ascend_moe.errors import InvalidInput

MODELSLIM_FILE = "quant_model_description.json"
# SGLang, too, takes the format of a layer from its first expert.
_FIRST_EXPERT = re.compile(r"(.*\.experts\.0\.\w+)\.weight")


def tensor_formats(folder: Path) -> dict[str, str]:
    """The format of each tensor of a checkpoint, in modelslim's words; empty if the folder has no description.

    Raises `InvalidInput` for one that cannot be read.
    """
    file = folder / MODELSLIM_FILE
    if not file.is_file():
        return {}
    try:
        described = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"{file}: must be an object in JSON, as modelslim writes it ({error})") from error
    return {name: str(kind) for name, kind in described.items()}


def expert_formats(folder: Path) -> frozenset[str]:
    """The formats of the routed experts, in modelslim's words and, of weights of 4 bits, with what sets them apart from
    those that SGLang computes with; empty and raising as `tensor_formats`.
    """
    described = tensor_formats(folder)
    found = ((_FIRST_EXPERT.fullmatch(name), kind) for name, kind in described.items())
    return frozenset(_format(described, match[1], kind) for match, kind in found if match)


def _format(described: Mapping[str, str], projection: str, kind: str) -> str:
    if not kind.startswith("W4A8"):
        return kind
    if f"{projection}.weight_scale_second" in described:
        return f"{kind} with a scale per group"
    if f"{projection}.weight_scale" in described and f"{projection}.scale_bias" not in described:
        return f"{kind} without scale_bias"
    return kind
