"""The Python sources of torch_npu, out of its wheels: downloaded without dependencies, parsed, never imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple


class Parameter(NamedTuple):
    """A parameter of a function; `default` as source text, None if it has none."""

    name: str
    default: str | None


class Sources:
    """The files of one version."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            self.files = {
                name: archive.read(name).decode()
                for name in archive.namelist()
                if name.endswith((".py", "/METADATA")) and name.startswith(("torch_npu/npu/", "torch_npu-"))
            }

    @property
    def requirements(self) -> list[str]:
        (metadata,) = [text for name, text in self.files.items() if name.endswith("/METADATA")]
        return re.findall(r"^Requires-Dist: (.*)$", metadata, flags=re.MULTILINE)

    def tree(self, file: str) -> ast.Module:
        return ast.parse(self.files[f"torch_npu/npu/{file}"])


def download(requirement: str, folder: Path) -> Sources:
    """The newest wheel that `requirement` allows, kept in `folder`. Fails with pip's words if none can be had."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", requirement], capture_output=True, text=True, timeout=240
    )
    found = re.findall(r"torch_npu-[^\s/]+\.whl", done.stdout)
    if done.returncode or not found:
        raise AssertionError(f"pip could not download {requirement}:\n{done.stdout}{done.stderr}")
    return Sources(folder / found[-1])


def definition(tree: ast.AST, path: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class at a dotted path in a module; None if there is none."""
    node: ast.AST | None = tree
    for name in path.split("."):
        body = getattr(node, "body", [])
        kinds = (ast.FunctionDef, ast.ClassDef)
        node = next((item for item in body if isinstance(item, kinds) and item.name == name), None)
    return node


def parameters(function: ast.FunctionDef) -> list[Parameter]:
    """The parameters of a function that can be given by position, without `self` and `cls`."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    missing = len(arguments) - len(function.args.defaults)
    defaults = [None] * missing + [ast.unparse(default) for default in function.args.defaults]
    found = [Parameter(item.arg, default) for item, default in zip(arguments, defaults, strict=True)]
    return [item for item in found if item.name not in ("self", "cls")]


def differences(real: ast.Module, path: str, relied: list[Parameter]) -> list[str]:
    """What of a function that is relied on is not there as it is relied on: its name, a parameter, a default."""
    found = definition(real, path)
    if isinstance(found, ast.ClassDef):
        made = definition(found, "__init__") or definition(found, "__new__")
        return differences(found, made.name, relied) if made else [f"{path} has no constructor"]
    if not isinstance(found, ast.FunctionDef):
        return [f"{path} is not defined"]
    there = parameters(found)[: len(relied)]
    return [] if there == relied else [f"{path} has {there}, relied on are {relied}"]
