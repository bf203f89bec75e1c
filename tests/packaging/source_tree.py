"""The project's Python modules and what each of them imports, read from the source files without running them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sglang_ascend_moe"
# Folder of the repository -> the package it installs as.
PACKAGE_FOLDERS = {
    PACKAGE: PACKAGE,
    "launch": f"{PACKAGE}.launch",
    "graph_capture": f"{PACKAGE}.graph_capture",
}


class Import(NamedTuple):
    """`module` imports `target`, a dotted name; `at` is file:line."""

    module: str
    target: str
    at: str


@cache
def modules() -> dict[str, Path]:
    """Import name -> file, of every module that the distribution installs."""
    found = {}
    for folder, package in PACKAGE_FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join((package, *parts))] = path
    return found


def imports_of(module: str, source: str, *, path: Path, known: set[str]) -> Iterator[Import]:
    """Every import statement in `source`, at any depth, with relative names resolved.

    `from package import name` imports the module `package.name` if `known` has it, and otherwise `package`.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            inner = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in known else base for name in inner]
        elif _is_import_call(node):
            targets = [node.args[0].value]
        else:
            continue
        for target in targets:
            yield Import(
                module, target, f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{node.lineno}"
            )


def _is_import_call(node: ast.AST) -> bool:
    """`import_module("a.b")`, however it is spelt, with a literal name."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__") and isinstance(node.args[0].value, str)


@cache
def imports() -> tuple[Import, ...]:
    """Every import of every module of the distribution."""
    known = modules()
    return tuple(
        found
        for module, path in known.items()
        for found in imports_of(module, path.read_text(), path=path, known=set(known))
    )


def is_within(name: str, package: str) -> bool:
    """Whether the dotted `name` is `package` or lies inside it."""
    return name == package or name.startswith(f"{package}.")
