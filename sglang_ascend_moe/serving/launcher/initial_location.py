"""`--init-expert-location`: where experts lie at first, or how often each was chosen, as a user writes it.

SGLang takes it as it is; a place that no expert can have would end a rank, or lose an expert.
"""

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.launcher.written_values import read_file, read_object

FLAG = "--init-expert-location"
TRIVIAL = "trivial"
"""SGLang's default: expert i at place i."""
_PLACES, _COUNTS = "physical_to_logical_map", "logical_count"


class Experts(NamedTuple):
    """Of a model: layers (None: not known), experts of a layer, and redundant ones besides."""

    layers: int | None
    experts: int
    redundant: int


def refuse_initial_location(value: str, experts: Experts, *, read_tensors: bool) -> None:
    """Raise `InvalidInput`, naming flag, value and rule, for a location that the model cannot be started with.

    read_tensors: whether the contents of a `.pt` file are looked at, for which torch is imported.
    """
    if value == TRIVIAL:
        return
    try:
        if value.endswith(".pt") and not read_tensors:
            _open_tensors(value)
            return
        _check(_read(value), experts)
    except InvalidInput as error:
        # A path is what the reader looks for; JSON may have any length.
        is_path = value.endswith((".json", ".pt"))
        shown = value if is_path or len(value) <= 80 else f"{value[:77]}..."
        raise InvalidInput(f"{FLAG} {shown}: {error}") from error


def _read(value: str) -> dict[str, Any]:
    if value.endswith(".json"):
        return read_object(read_file(value))
    if not value.endswith(".pt"):
        return read_object(value)
    import torch

    with _open_tensors(value) as file:
        try:
            content = torch.load(file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise InvalidInput("must be a file that torch.save has written, of nothing but tensors") from error
    if not isinstance(content, dict):
        raise InvalidInput("must hold a dictionary of tensors")
    return {name: part.tolist() if isinstance(part, torch.Tensor) else part for name, part in content.items()}


def _open_tensors(path: str) -> Any:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InvalidInput(f"must be a file that can be read ({error.strerror})") from error


def _check(content: dict[str, Any], experts: Experts) -> None:
    if _PLACES in content:
        _check_places(content[_PLACES], experts)
        if unknown := sorted(set(content) - {_PLACES}):
            raise InvalidInput(f"holds {unknown[0]!r} beside {_PLACES!r}, which SGLang does not take")
    elif _COUNTS in content:
        _check_counts(content[_COUNTS], experts)
    else:
        raise InvalidInput(f"must hold {_PLACES!r} or {_COUNTS!r}")


def _check_places(layers: Any, experts: Experts) -> None:
    physical = experts.experts + experts.redundant
    _require_layers(_PLACES, layers, experts.layers)
    for number, places in enumerate(layers):
        if not isinstance(places, list) or len(places) != physical:
            held = f"{len(places)} entries" if isinstance(places, list) else repr(places)
            raise InvalidInput(
                f"layer {number} has {held}; it must have {physical}, one for each of the model's {experts.experts}"
                f" experts and of the {experts.redundant} of --ep-num-redundant-experts"
            )
        for place, expert in enumerate(places):
            if type(expert) is not int or not 0 <= expert < experts.experts:
                raise InvalidInput(
                    f"place {place} of layer {number} has expert {expert!r}; must be 0 .. {experts.experts - 1}"
                )
        if missing := sorted(set(range(experts.experts)) - set(places)):
            raise InvalidInput(f"layer {number} has no place for expert {missing[0]}; every expert needs one")


def _check_counts(counts: Any, experts: Experts) -> None:
    # [layers, experts], or that again and again: SGLang adds records up.
    records = counts if _depth(counts) == 3 else [counts]
    for layers in records:
        _require_layers(_COUNTS, layers, experts.layers)
        for number, row in enumerate(layers):
            if not isinstance(row, list) or len(row) != experts.experts:
                held = f"{len(row)} entries" if isinstance(row, list) else repr(row)
                raise InvalidInput(
                    f"layer {number} has {held}; it must have {experts.experts}, a count for each expert"
                )
            for expert, count in enumerate(row):
                if type(count) not in (int, float) or not math.isfinite(count) or count < 0:
                    raise InvalidInput(f"expert {expert} of layer {number} has count {count!r}; it must be 0 or more")


def _require_layers(name: str, layers: Any, expected: int | None) -> None:
    if not isinstance(layers, list) or not layers:
        raise InvalidInput(f"{name!r} must be a list with a list for each layer")
    if expected is not None and len(layers) != expected:
        raise InvalidInput(f"{name!r} is of {len(layers)} layers; it must be of the model's {expected}")


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, Sequence) and not isinstance(value, str) and value else 0
