"""What keeps a step out of a graph: the rules for single operators, and a finding in words."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from sglang_ascend_moe import launches

MOST_SHOWN = 8
"""Findings in one message; the others are counted."""
_TORCH = str(Path(torch.__file__).parent)
_OWN = ("findings.py", "guard.py", "watched_calls.py", "tape.py", "trees.py")
_WATCHING = (launches.__file__, *(str(Path(__file__).with_name(name)) for name in _OWN))
_MASKED_WRITES = {"aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
_WITH_MASKS = {"aten::index", *_MASKED_WRITES}


class Rule(NamedTuple):
    """Why something cannot be captured, and what to do instead."""

    problem: str
    remedy: str


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that cannot be captured: the operator, the line of user code that called it, why, and what to do."""

    operator: str
    file: str
    line: int
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.operator} at {self.file}:{self.line} {self.problem}: {self.remedy}"


HOST_READ = Rule(
    "waits for the device and hands a value to Python, which a graph would keep for ever",
    "keep the value in a tensor (torch.where, index_select, masked_fill), or compute it before the step and copy it"
    " into a tensor that stays",
)
DATA_SHAPE = Rule(
    "gives a result whose shape depends on the values of its input",
    "keep the full shape and mask what does not count (torch.where, masked_fill), or sort it out before the step",
)
RANDOM = Rule(
    "draws random numbers, and replays do not draw as the step would",
    "draw before the step and copy the numbers into a tensor that stays; switch dropout off",
)
COLLECTIVE = Rule(
    "communicates from the host, which a replay does not repeat",
    "exchange through the windows of an Exchange, or communicate before or after the step",
)
COPY_BETWEEN_DEVICES = Rule(
    "copies between host and device, which waits for the device and would be done once",
    "keep the tensor on the device; copy inputs before the step and results after it",
)
NEW_WINDOW = Rule(
    "allocates a window, whose address a graph would keep after it is gone",
    "call Exchange.create before the step is captured",
)
LAYOUT = Rule(
    "takes or makes a tensor that is sparse or nested, and a graph holds none",
    "keep it dense, with a mask for what does not count (to_dense, to_padded_tensor before the step)",
)
HIGHER_ORDER = Rule(
    "is given Python functions to call, which a replay does not repeat",
    "compute every side and choose with torch.where, or choose before the step",
)
RESIZED = Rule(
    "makes a tensor of the step larger, and a replay would write over what lies behind it",
    "make the tensor in its full size, or let the operator return a new one",
)
SAME_PATH = "let the same operators run every time, with masks for what differs"
VALUE_IN_TENSOR = "hold it in a tensor that stays, and change that tensor in place"
TENSOR_IN_PLACE = "write into one tensor in place (copy_, add_) instead of making another"
"""What to do about differences between runs."""

_READING_METHODS = (
    "item", "tolist", "numpy", "cpu", "is_nonzero", "__bool__", "__int__", "__float__", "__complex__", "__index__",
    "__array__", "__dlpack__",
)  # fmt: skip
HOST_READS = {getattr(Tensor, name): f"Tensor.{name}" for name in _READING_METHODS}
"""Methods that hand a tensor's values to Python, some of them without an operator that a dispatch mode would see."""

_COLLECTIVE_NAMES = re.compile(r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|broadcast|barrier")
_NO_COLLECTIVES = {"aten", "prim", "prims"}
_DISTRIBUTED = {"c10d", "_c10d_functional", "c10d_functional"}


def broken_rule(func: Any, arguments: dict[str, Any]) -> Rule | None:
    """The rule that a call of the operator `func` breaks; `arguments` by name, defaults included."""
    if (func.namespace in _DISTRIBUTED or _is_collective_elsewhere(func)) and _all_on_host(arguments):
        return COLLECTIVE
    freezes = frozen_rule(func, arguments)
    if freezes is not None:
        return freezes
    if _is_random(func, arguments):
        return RANDOM
    if _copies_between_devices(func, arguments):
        return COPY_BETWEEN_DEVICES
    return None


def frozen_rule(func: Any, arguments: dict[str, Any]) -> Rule | None:
    """The rule that a call breaks whose result has another shape, or is no tensor, for other values."""
    if torch.Tag.data_dependent_output in func.tags:
        return HOST_READ
    return DATA_SHAPE if _has_data_shape(func, arguments) else None


@cache
def may_freeze(func: Any) -> bool:
    """Whether any call of the operator breaks the rule of `frozen_rule`, which needs the arguments to tell which."""
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not tags.isdisjoint(func.tags) or func._schema.name in _WITH_MASKS


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is elements in one memory, at strides."""
    return tensor.layout is torch.strided and not tensor.is_nested


def refusal(rule: Rule, operator: str) -> str:
    """The words for a call that cannot even be watched or recorded, with the line of user code that made it."""
    finding = Finding(operator, *user_line(), rule.problem, rule.remedy)
    return f"the step cannot be captured into a graph: {finding}"


def shown_name(func: Any) -> str:
    """An operator as messages name it: aten.add."""
    return func._schema.name.replace("::", ".") if hasattr(func, "_schema") else str(func)


def user_line(passed_over: str = _TORCH) -> tuple[str, int]:
    """File and line of the innermost frame that lies neither in what watches a step nor in the folder `passed_over`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _lies_in(frame.f_code.co_filename, passed_over):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


@cache
def _lies_in(file: str, folder: str) -> bool:
    return file.startswith((*_WATCHING, folder))


def _is_collective_elsewhere(func: Any) -> bool:
    # Operators of SGLang and others, written in Python, that communicate inside.
    return func.namespace not in _NO_COLLECTIVES and _COLLECTIVE_NAMES.search(func._opname) is not None


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in an argument or result: alone, or in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


def _all_on_host(arguments: dict[str, Any]) -> bool:
    # A collective on tensors of an accelerator runs on its stream and is captured with it.
    return all(tensor.device.type == "cpu" for tensor in tensors_in(arguments))


def _has_data_shape(func: Any, arguments: dict[str, Any]) -> bool:
    if func._schema.name in _WITH_MASKS:
        masks = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors_in(arguments["indices"]))
        # With a single value a write becomes a masked fill, which needs no positions.
        return masks and (func._schema.name not in _MASKED_WRITES or arguments["values"].numel() != 1)
    # With the size of the result as an argument nothing has to be looked up.
    return torch.Tag.dynamic_output_shape in func.tags and arguments.get("output_size") is None


def _is_random(func: Any, arguments: dict[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags and "generator" not in arguments:
        return False
    # Attention carries the tag for the sake of its dropout.
    chances = (arguments.get("dropout_p"), arguments.get("p"))
    if any(isinstance(chance, float | int) and chance == 0 for chance in chances):
        return False
    return arguments.get("train", arguments.get("training")) is not False


def _copies_between_devices(func: Any, arguments: dict[str, Any]) -> bool:
    match func._schema.name:
        case "aten::_to_copy":
            source, target = arguments["self"].device, arguments["device"]
        case "aten::copy_":
            source, target = arguments["src"].device, arguments["self"].device
        case "aten::lift_fresh":
            # Made from Python values, and thus on the host.
            return arguments["self"].device.type != "cpu"
        case _:
            return False
    if target is None:
        return False
    return (source.type == "cpu") != (torch.device(target).type == "cpu")
