"""What the exchange needs to know of a model, read from its Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sglang_ascend_moe.errors import InvalidInput

# Model families have names of their own for these. In the order in which they are looked for: a router's number of
# experts before the names that some families use for something else.
HIDDEN_NAMES = ("hidden_size", "d_model", "n_embd")
EXPERT_NAMES = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_moe_experts")
TOPK_NAMES = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k",
    "num_selected_experts", "top_k_experts",
)  # fmt: skip
DTYPE_NAMES = ("dtype", "torch_dtype")
# Where multi-modal models and some others keep the part that has the experts.
INNER_NAMES = ("text_config", "llm_config", "language_config", "thinker_config", "ffn_config")


class MoeShape(NamedTuple):
    """Of one MoE layer; `experts` of all ranks together, without shared ones. None: the config does not say."""

    name: str
    hidden: int | None
    experts: int | None
    topk: int | None
    dtype: str | None


def read_moe_shape(path: Path) -> MoeShape:
    """Reads a config.json, or the one in a folder.

    Raises `InvalidInput` for a file that is not there or is no config.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise InvalidInput(
            f"--model {path}: {error.strerror} ({file}); give a model's folder or its config.json"
        ) from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"--model {path}: {file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"--model {path}: {file} holds no configuration")
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else file.parent.name
    parts = _parts(config) or [config]
    dtype = _find(parts, DTYPE_NAMES, str)
    return MoeShape(
        name=str(name),
        hidden=_find(parts, HIDDEN_NAMES, int),
        experts=_find(parts, EXPERT_NAMES, int),
        topk=_find(parts, TOPK_NAMES, int),
        dtype=dtype.removeprefix("torch.") if dtype else None,
    )


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The part of `config` that has experts, then those around it; empty if none has."""
    if _find([config], EXPERT_NAMES, int) is not None:
        return [config]
    for inner in INNER_NAMES:
        part = config.get(inner)
        if isinstance(part, dict) and (found := _parts(part)):
            return [*found, config]
    return []


def _find(parts: list[Mapping[str, Any]], names: tuple[str, ...], kind: type) -> Any:
    """The first of `names` that says something; of a list with a value per layer the greatest."""
    for part in parts:
        for name in names:
            value = part.get(name)
            if isinstance(value, list) and value and all(isinstance(item, kind) for item in value):
                value = max(value)
            if isinstance(value, kind) and not isinstance(value, bool) and value:
                return value
    return None
