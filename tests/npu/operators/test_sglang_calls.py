"""Every call that SGLang makes on the paths of these models finds an operator that takes its arguments."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.npu.operators import modules, sglang_calls
from tests.npu.operators.declaration import DECLARED
from tests.npu.operators.sglang_calls import NOT_SERVED, NOT_SERVED_LINES, SERVED, Call

PREFIXES = ("torch_npu.npu_", "torch_npu._npu", "torch.ops.npu.", "torch.ops.custom.")
NAMESPACES = ("npu", "atb", "sgl_kernel_npu")


class Found(NamedTuple):
    """A call in a file: `within` are the classes and functions around it."""

    line: int
    operator: str
    within: str
    call: ast.Call


def folder() -> Path:
    return Path(importlib.util.find_spec("sglang").submodule_search_locations[0]) / "srt"


@cache
def calls(file: str) -> tuple[Found, ...]:
    tree = ast.parse((folder() / file).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("sgl_kernel_npu", "torch_npu"))
        for alias in node.names
    }

    def visit(node: ast.AST, within: tuple[str, ...]) -> Iterator[Found]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            within = (*within, node.name)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split("[")[0]
            prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
            if name in imported or (prefix and "(" not in name):
                bare = name
                for prefix in () if name in imported else ("torch_npu.", "torch.ops.npu.", "torch.ops."):
                    bare = bare.removeprefix(prefix)
                yield Found(node.lineno, bare, ".".join(within), node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, within)

    return tuple(visit(tree, ()))


def at(call: Call) -> Found:
    (found,) = [found for found in calls(call.file) if (found.line, found.operator) == (call.line, call.operator)]
    return found


FILES = sorted({call.file for call in SERVED} | set(NOT_SERVED))


@pytest.mark.parametrize("file", FILES)
def test_every_call_is_served_or_has_a_reason(file):
    served = {call.line for call in SERVED if call.file == file}
    reasons = NOT_SERVED.get(file, {})
    unknown = [
        f"{file}:{found.line} {found.operator} in {found.within}"
        for found in calls(file)
        if found.line not in served
        and (file, found.line) not in NOT_SERVED_LINES
        and not any(f"{found.within}.".startswith(f"{name}.") for name in reasons)
    ]
    assert unknown == []


@pytest.mark.parametrize("file", FILES)
def test_every_reason_is_for_a_call(file):
    within = {found.within for found in calls(file)}
    reasons = NOT_SERVED.get(file, {})
    assert [name for name in reasons if not any(f"{place}.".startswith(f"{name}.") for place in within)] == []
    lines = {found.line for found in calls(file)}
    assert [line for other, line in NOT_SERVED_LINES if other == file and line not in lines] == []


def taken_by(operator: str) -> set[str]:
    """Parameters that are computed with, or that a function of ours takes."""
    for name in (operator.replace(".", "::"), *(f"{namespace}::{operator}" for namespace in NAMESPACES)):
        if declared := DECLARED.get(name):
            return set(inspect.signature(declared.compute).parameters)
    ours = {"alloc_extend_kernel": modules.alloc_extend}
    return set(inspect.signature(ours.get(operator) or getattr(modules, operator)).parameters)


@pytest.mark.parametrize("call", SERVED, ids=lambda call: f"{Path(call.file).stem} {call.line} {call.operator}")
def test_the_operator_computes_with_what_is_given(call):
    taken = taken_by(call.operator)
    given = {word.arg: word.value for word in at(call).call.keywords if word.arg}
    # Others may be written out with their defaults.
    defaults = {name for name, value in given.items() if ast.unparse(value) in ("None", "0")}
    assert set(given) - taken - defaults == set()


def test_the_table_names_the_version_that_is_installed():
    assert importlib.metadata.version("sglang") in sglang_calls.__doc__


IMPORTS = (
    "sglang.srt.models.qwen3_moe", "sglang.srt.models.deepseek_v2", "sglang.srt.models.glm4_moe",
    "sglang.srt.models.minimax_m2", "sglang.srt.hardware_backend.npu.attention.ascend_backend",
    "sglang.srt.hardware_backend.npu.graph_runner.npu_cudagraph_backend",
    "sglang.srt.hardware_backend.npu.quantization.moe_methods",
    "sglang.srt.layers.moe.token_dispatcher.ascend_tp",
)  # fmt: skip
PROGRAM = """
import importlib, sys, types
import torch

device = types.ModuleType("torch.npu")
device.is_available = lambda: True
sys.modules["torch.npu"] = torch.npu = device
from tests.npu.operators import modules
modules.install()
for name in sys.argv[1:]:
    importlib.import_module(name)
from sglang.srt.utils import is_npu
assert is_npu()
from sglang.srt.hardware_backend.npu.utils import is_npu_arch35
assert not is_npu_arch35()
"""


@pytest.mark.nightly
def test_sglang_imports_its_npu_path():
    """With a device that says no more than that it is there."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *IMPORTS], capture_output=True, text=True, timeout=280,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
