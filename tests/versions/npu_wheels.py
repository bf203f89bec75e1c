"""Wheels of packages for NPUs: downloaded without dependencies, kept in pytest's cache, read and never imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.npu.device.build import alone

TORCH_NPU = {"torch 2.14": "torch_npu==2.14.0", "torch 2.13": "torch_npu>=2.13,<2.14"}
OWN_TORCH = f"torch {'.'.join(version('torch').split('.')[:2])}"
"""The key of that for the torch that is installed."""
MEMFABRIC = "memfabric-hybrid==1.3.0"


class Parameter(NamedTuple):
    """A parameter of a function; `default` as source text, None if it has none."""

    name: str
    default: str | None


class Wheel:
    """The files of one wheel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path)
        self.names = frozenset(self._archive.namelist())

    def text(self, name: str) -> str:
        return self._archive.read(name).decode()

    @property
    def requirements(self) -> list[str]:
        (name,) = [name for name in self.names if name.endswith(".dist-info/METADATA")]
        return re.findall(r"^Requires-Dist: (.*)$", self.text(name), flags=re.MULTILINE)

    @cache  # noqa: B019 - as long as the tests run
    def tree(self, name: str) -> ast.Module:
        return ast.parse(self.text(name))

    def module(self, dotted: str) -> ast.Module | None:
        """The source of a Python module, or the stubs of one that is compiled; None if the wheel has neither."""
        place = dotted.replace(".", "/")
        for name in (f"{place}.py", f"{place}/__init__.py", f"{place}.pyi", f"{place}/__init__.pyi"):
            if name in self.names:
                return self.tree(name)
        return None

    def extract(self, prefix: str, folder: Path) -> Path:
        """Unpacks what begins with `prefix` into `folder`."""
        self._archive.extractall(folder, [name for name in self.names if name.startswith(prefix)])
        return folder / prefix


@cache
def download(requirement: str, folder: Path) -> Wheel:
    """The newest wheel that `requirement` allows, into `folder`. Fails with pip's words if none can be had."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    # Another process may be downloading it, and pip copies in place.
    with alone(folder):
        done = subprocess.run(
            [*command, "--disable-pip-version-check", requirement], capture_output=True, text=True, timeout=240
        )
    found = re.findall(r"[\w.+-]+\.whl", done.stdout)
    if done.returncode or not found:
        raise AssertionError(f"pip could not download {requirement}:\n{done.stdout}{done.stderr}")
    return Wheel(folder / found[-1])


def wheel(requirement: str, config: pytest.Config) -> Wheel:
    """As `download`, into pytest's cache."""
    return download(requirement, config.cache.mkdir("npu_wheels"))


def headers(torch: str, config: pytest.Config, folder: Path) -> Path:
    """Unpacks the C++ headers of a torch_npu, CANN's among them; returns the folder to include."""
    return wheel(TORCH_NPU[torch], config).extract("torch_npu/include/", folder)


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
