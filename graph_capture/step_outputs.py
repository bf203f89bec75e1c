"""What a decode step of SGLang returns: what a replay makes anew, and what has to outlive the next replay."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from sglang_ascend_moe.graph_capture.trees import leaves, mapped

USED_AT_ONCE = frozenset({"next_token_logits"})
"""Fields that are read before the next step begins. SGLang's overlapped scheduler reads the others while that runs, on
a CPU from these very tensors: they are copied, so that the next replay does not write over them."""


def recorded(output: Any) -> dict[str, Any]:
    """What holds tensors, itself or in tuples, lists, dictionaries: of fields of a dataclass, of items of a tuple,
    or of what a pipeline stage hands on."""
    if isinstance(output, tuple):
        fields = {str(place): item for place, item in enumerate(output)}
    elif hasattr(output, "tensors"):
        fields = output.tensors
    else:
        fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {name: value for name, value in fields.items() if any(isinstance(leaf, Tensor) for leaf in leaves(value))}


def replayed(template: Any, fields: dict[str, Any]) -> Any:
    """`template`, which the recorded step returned, with the `fields` that a replay has written."""
    lasting = {
        name: value if name in USED_AT_ONCE else mapped(value, Tensor, Tensor.clone) for name, value in fields.items()
    }
    if isinstance(template, tuple):
        return tuple(lasting.get(str(place), item) for place, item in enumerate(template))
    handed_on = getattr(template, "tensors", None)
    if handed_on is not None:
        return type(template)({**handed_on, **lasting})
    return dataclasses.replace(template, **lasting)
