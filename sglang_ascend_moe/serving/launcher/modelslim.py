"""What modelslim writes beside the weights that it has quantised: the format of each."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from sglang_ascend_moe.errors import InvalidInput

MODELSLIM_FILE = "quant_model_description.json"
# SGLang, too, takes the format of a layer from its first expert.
_FIRST_EXPERT = re.compile(r".*\.experts\.0\.\w+\.weight")


def expert_formats(folder: Path) -> frozenset[str]:
    """The formats of the routed experts, in modelslim's words; empty if the folder has no description.

    Raises `InvalidInput` for one that cannot be read.
    """
    file = folder / MODELSLIM_FILE
    if not file.is_file():
        return frozenset()
    try:
        described = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"{file}: must be an object in JSON, as modelslim writes it ({error})") from error
    return frozenset(str(kind) for name, kind in described.items() if _FIRST_EXPERT.fullmatch(name))
