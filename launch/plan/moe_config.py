"""What the exchange needs to know of a model, read from its Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE, expert_formats
from sglang_ascend_moe.serving.launcher.refusals import Model, expert_count
from sglang_ascend_moe.serving.launcher.scaled_weights import is_multiplied_out, settings_of

# Model families have names of their own for these.
HIDDEN_NAMES = ("hidden_size", "d_model", "n_embd")
TOPK_NAMES = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k",
    "num_selected_experts", "top_k_experts",
)  # fmt: skip
DTYPE_NAMES = ("dtype", "torch_dtype")
# Where multi-modal models and some others keep the part that has the experts.
INNER_NAMES = ("text_config", "llm_config", "language_config", "thinker_config", "ffn_config")

# Beside config.json: what ModelOpt writes of how it has quantised the weights.
MODELOPT_FILE = "hf_quant_config.json"
MODELOPT_ALGORITHMS = ("FP8", "FP4", "MIXED_PRECISION")
"""What is in the names of those that SGLang takes for a quantised checkpoint."""


class MoeShape(NamedTuple):
    """Of one MoE layer; `experts` of all ranks together, without shared ones; `layers` of the model, with and without
    experts. None: the config does not say.

    quantisation: the name of the format of the weights, None for those that are not quantised. context: of the longest
    request that the model takes. expert_formats: in modelslim's words. multiplied_out: see `Model`.
    """

    name: str
    hidden: int | None
    experts: int | None
    topk: int | None
    dtype: str | None
    quantisation: str | None = None
    layers: int | None = None
    context: int | None = None
    expert_formats: frozenset[str] = frozenset()
    multiplied_out: bool = False

    def model(self, path: object) -> Model:
        """What is asked of a model that is to be served; `path` is what to call it."""
        return Model(
            str(path), self.quantisation, self.experts, self.hidden, self.layers, self.expert_formats,
            self.multiplied_out,
        )  # fmt: skip


def read_moe_shape(path: Path, asked_by: str = "--model") -> MoeShape:
    """Reads a config.json, or the one in a folder. asked_by: the flag or key that gives `path`.

    Raises `InvalidInput` for a file that is not there or is no config.
    """
    file = path / "config.json" if path.is_dir() else path
    asked = f"{asked_by} {path}"
    config = _read_object(file, asked)
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else file.parent.name
    parts = _parts(config) or [config]
    dtype = _find(parts, DTYPE_NAMES, str)
    quantisation = _quantisation(config, file.parent, asked)
    return MoeShape(
        name=str(name),
        hidden=_find(parts, HIDDEN_NAMES, int),
        experts=expert_count(parts[0].get),
        topk=_find(parts, TOPK_NAMES, int),
        dtype=dtype.removeprefix("torch.") if dtype else None,
        quantisation=quantisation,
        layers=_find(parts, ("num_hidden_layers",), int),
        context=_find(parts, ("max_position_embeddings",), int),
        expert_formats=expert_formats(file.parent),
        multiplied_out=quantisation == "modelslim" or is_multiplied_out(settings_of(config)),
    )


def config_values(path: Path, asked_by: str = "--model") -> Callable[[str], Any]:
    """What a config says under a name, first in the part that has the experts; None if it does not.

    Raises as `read_moe_shape`.
    """
    config = _read_object(path / "config.json" if path.is_dir() else path, f"{asked_by} {path}")
    parts = _parts(config) or [config]
    return lambda name: next((part[name] for part in parts if part.get(name) is not None), None)


def _read_object(file: Path, asked: str) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{asked}: {error.strerror} ({file}); give a model's folder or its config.json") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{asked}: {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{asked}: {file} holds no configuration")
    return content


def _quantisation(config: Mapping[str, Any], folder: Path, asked: str) -> str | None:
    """The format that SGLang would find, under its name or that of the tool that wrote it."""
    if (folder / MODELSLIM_FILE).is_file():
        return "modelslim"
    if (found := settings_of(config)) is not None:
        return str(found.get("quant_method", "modelopt")).lower()
    if (folder / MODELOPT_FILE).is_file():
        written = _read_object(folder / MODELOPT_FILE, asked)
        inner = written.get("quantization", written)
        algorithm = str(inner.get("quant_algo")) if isinstance(inner, dict) else ""
        if any(known in algorithm for known in MODELOPT_ALGORITHMS):
            return "modelopt"
    return None


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The part of `config` that has experts, then those around it; empty if none has."""
    if expert_count(config.get) is not None:
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
