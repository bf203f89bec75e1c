"""The flags of the installed SGLang, read from the source files that declare them: importing it takes ten seconds."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import Unsupported

# Below the folder of the package: fields of the server arguments, and what is added to the parser besides.
_FIELDS = "srt/arg_groups/fields"
_PARSER = "srt/server_args.py"
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class DeclaredFlag(NamedTuple):
    """A flag of SGLang's server and its other spellings, as argparse is told of it.

    kind: `switch`, `switch with a no` (`--no-...` too), `other switch` (an action of SGLang's own), `value`, or `other
    value`. type: the name of the function that reads a value. default: None where it is no literal. choices: None where
    there are none, or plugins may add some.
    """

    name: str
    flags: tuple[str, ...]
    kind: str
    type: str = "str"
    nargs: str | None = None
    default: Any = None
    choices: tuple[Any, ...] | None = None


def package_folder() -> Path:
    """Where SGLang lies, without importing it. Raises `Unsupported` if it is not installed."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported("SGLang is not installed: pip install -r requirements.lock")
    return Path(spec.submodule_search_locations[0])


@cache
def declared_flags() -> tuple[DeclaredFlag, ...]:
    """Raises `Unsupported` if SGLang is not installed, or declares its flags in another way."""
    root = package_folder()
    fields: dict[str, DeclaredFlag] = {}
    hidden: dict[str, Any] = {}
    # Before 0.5.20 the parser's file has them.
    for path in sorted((root / _FIELDS).glob("*.py")) or sorted(root.glob(_PARSER)):
        for name, annotation, default in _fields(ast.parse(path.read_bytes())):
            given = _keywords_of_arg(annotation)
            if "no_cli" in given or not _is_described(annotation):
                hidden[name] = default
            else:
                fields[name] = _declared(name, annotation, given, default)
    if not fields or not (root / _PARSER).is_file():
        raise Unsupported(f"{root}: this version of SGLang declares its flags elsewhere; install requirements.lock")
    defaults = {**hidden, **{name: flag.default for name, flag in fields.items()}}
    added = _added(ast.parse((root / _PARSER).read_bytes()), defaults)
    return (*fields.values(), *added)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser, which then reads what SGLang's reads; values of a form of their own stay text."""
    for flag in declared_flags():
        keywords: dict[str, Any] = {"dest": flag.name, "default": flag.default}
        match flag.kind:
            case "switch":
                keywords["action"] = "store_true"
            case "switch with a no":
                keywords["action"] = argparse.BooleanOptionalAction
            case "other switch":
                keywords["action"] = _OtherSwitch
            case "other value":
                keywords |= {"action": _OtherValue, "nargs": flag.nargs}
            case _:
                keywords |= {"type": _TYPES.get(flag.type, str), "nargs": flag.nargs, "choices": flag.choices}
        parser.add_argument(*flag.flags, **keywords)


class _OtherSwitch(argparse.Action):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(nargs=0, **keywords)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)


class _OtherValue(argparse.Action):
    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, values)


def _human_readable_int(text: str) -> int:
    """As SGLang reads it: `8192`, `8k`, `25.6k` or `8Ki`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)", text.strip())
    if match is None:
        return int(text)
    number, unit = match.groups()
    if "." in number and unit.endswith("i"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number with {unit}")
    return int(Decimal(number) * _UNITS[unit])


_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "human_readable_int": _human_readable_int}


def _fields(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr], Any]]:
    """`name: A[type, "help" or Arg(...)] = default`."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(
                target=ast.Name(id=name),
                annotation=ast.Subscript(value=ast.Name(id="A"), slice=ast.Tuple(elts=annotation)),
                value=value,
            ):
                yield name, annotation, _literal(value)


def _keywords_of_arg(annotation: list[ast.expr]) -> dict[str, ast.expr]:
    for part in annotation[1:]:
        match part:
            case ast.Call(func=ast.Name(id="Arg"), keywords=keywords):
                return {keyword.arg: keyword.value for keyword in keywords if keyword.arg is not None}
    return {}


def _is_described(annotation: list[ast.expr]) -> bool:
    """Whether more is said of a field than its place; SGLang makes no flag of one without."""
    return not all(isinstance(part, ast.Call) and ast.unparse(part.func) == "NS" for part in annotation[1:])


def _declared(name: str, annotation: list[ast.expr], given: dict[str, ast.expr], default: Any) -> DeclaredFlag:
    flag = _literal(given.get("cli_name")) or f"--{name.replace('_', '-')}"
    flags = (flag, *(_literal(given.get("aliases")) or ()))
    nargs = _literal(given.get("nargs"))
    if action := given.get("action"):
        action_name = ast.unparse(action)
        if action_name.endswith("BooleanOptionalAction"):
            return DeclaredFlag(name, flags, "switch with a no", default=default)
        return DeclaredFlag(name, flags, "other value", nargs=_nargs_among(given.get("action_kwargs")), default=default)
    inner = _without_optional(annotation[0])
    listed = _literal(given.get("choices"))
    choices = tuple(listed) if listed else None
    own_type = ast.unparse(given["type_parser"]) if "type_parser" in given else None
    match inner:
        case ast.Name(id="bool"):
            return DeclaredFlag(name, flags, "switch", default=default)
        case ast.Subscript(value=ast.Name(id="List" | "list"), slice=element) if own_type is None:
            return DeclaredFlag(name, flags, "value", ast.unparse(element), nargs or "+", default, choices)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=[first, *others])):
            if "choices" not in given:
                choices = tuple(map(_literal, (first, *others)))
            kind = own_type or type(_literal(first)).__name__
            return DeclaredFlag(name, flags, "value", kind, None, default, choices)
        case _:
            return DeclaredFlag(name, flags, "value", own_type or ast.unparse(inner), nargs, default, choices)


def _nargs_among(keywords: ast.expr | None) -> str | None:
    match keywords:
        case ast.Dict(keys=keys, values=values):
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True)}.get("nargs")
        case _:
            return None


def _without_optional(annotation: ast.expr) -> ast.expr:
    match annotation:
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return inner
        case ast.BinOp(left=inner, op=ast.BitOr(), right=ast.Constant(value=None)):
            return inner
        case _:
            return annotation


def _added(tree: ast.Module, defaults: dict[str, Any]) -> Iterator[DeclaredFlag]:
    """Of `parser.add_argument("--flag", ...)`; defaults: of the fields, which some of them set."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(value=str(flag))], keywords=kws):
                given = {keyword.arg: keyword.value for keyword in kws if keyword.arg is not None}
                name = _literal(given.get("dest")) or flag.removeprefix("--").replace("-", "_")
                default = _literal(given.get("default")) if "default" in given else None
                match ast.unparse(given.get("action", ast.Constant(value=""))):
                    case "''":
                        yield DeclaredFlag(name, (flag,), "value", default=defaults.get(name, default))
                    case "'store_true'":
                        yield DeclaredFlag(name, (flag,), "switch", default=False)
                    case _ if "nargs" in given:
                        yield DeclaredFlag(name, (flag,), "other value", default=default)
                    case _:
                        yield DeclaredFlag(name, (flag,), "other switch", default=False)


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
