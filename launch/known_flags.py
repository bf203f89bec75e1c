"""The flags of the installed SGLang, read from the source files that declare them: importing it takes ten seconds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.options import ASK_FLAG, FLAGS

# Below the folder of the package: fields of the server arguments, and what is added to the parser besides.
_FIELDS = "srt/arg_groups/fields"
_PARSER = "srt/server_args.py"


@cache
def known_flags() -> frozenset[str]:
    """Every flag of the server, written out, those of this package among them.

    Raises `Unsupported` if SGLang is not installed, or declares its flags in another way.
    """
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported("SGLang is not installed: pip install -r requirements.lock")
    root = Path(spec.submodule_search_locations[0])
    declared: set[str] = set()
    for path in sorted((root / _FIELDS).glob("*.py")):
        declared.update(_flags_of_fields(ast.parse(path.read_bytes())))
    if not declared or not (root / _PARSER).is_file():
        raise Unsupported(f"{root}: this version of SGLang declares its flags elsewhere; install requirements.lock")
    declared.update(_flags_added(ast.parse((root / _PARSER).read_bytes())))
    return frozenset(declared) | {ASK_FLAG, *(flag.flag for flag in FLAGS.values())}


def _flags_of_fields(tree: ast.Module) -> Iterator[str]:
    """`name: A[type, "help" or Arg(...)] = default`, or a name of its own, further names, none, or a `--no-` too."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(
                target=ast.Name(id=name),
                annotation=ast.Subscript(value=ast.Name(id="A"), slice=ast.Tuple(elts=[_, *metadata])),
            ):
                given = _keywords_of_arg(metadata)
                if "no_cli" in given:
                    continue
                flag = _text(given.get("cli_name")) or f"--{name.replace('_', '-')}"
                aliases = given.get("aliases")
                flags = [flag, *(map(_text, aliases.elts) if isinstance(aliases, ast.List) else ())]
                yield from flags
                if ast.unparse(given.get("action", node)).endswith("BooleanOptionalAction"):
                    yield from (f"--no-{flag.removeprefix('--')}" for flag in flags)


def _keywords_of_arg(metadata: list[ast.expr]) -> dict[str, ast.expr]:
    for part in metadata:
        match part:
            case ast.Call(func=ast.Name(id="Arg"), keywords=keywords):
                return {keyword.arg: keyword.value for keyword in keywords if keyword.arg is not None}
    return {}


def _flags_added(tree: ast.Module) -> Iterator[str]:
    """Of `parser.add_argument("--flag", ...)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=names):
                yield from filter(None, map(_text, names))


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
