"""The functions with which torch_npu says what its operators return, taken out of the source of a wheel.

Nothing of the wheel is imported: the functions of one module are compiled, without their decorators, and called with
tensors that have no values.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Callable
from typing import Any

import torch

SOURCE = "torch_npu/op_plugin/meta/_meta_registrations.py"


class _Names:
    """Stands for enumerations of torch_npu: each name is itself, and equal to nothing that a call here gives."""

    def __getattr__(self, name: str) -> str:
        return name


def shape_functions(tree: ast.Module) -> dict[str, Callable[..., Any]]:
    """By the name of the operator, without its namespace."""
    implemented: dict[str, str] = {}
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            implemented |= {name: node.name for name in map(_operator_of, node.decorator_list) if name}
            kept.append(ast.FunctionDef(**vars(node) | {"decorator_list": []}))
        elif isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("Library("):
            kept.append(node)
    source = ast.fix_missing_locations(ast.Module(body=kept, type_ignores=[]))
    names: dict[str, Any] = {
        "math": math, "os": os, "torch": torch, "torch_npu": _Names(), "ErrCode": _Names(), "Dict": dict,
        "ops_error": lambda *_: "", "get_cann_version": lambda: "9.0.0", "get_soc_version": lambda: 0,
    }  # fmt: skip
    exec(compile(source, SOURCE, "exec", dont_inherit=True), names)
    return {operator: names[function] for operator, function in implemented.items()}


def _operator_of(decorator: ast.expr) -> str | None:
    """`name` of `@impl(m, "name")`."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "impl":
        return ast.literal_eval(decorator.args[1])
    return None
