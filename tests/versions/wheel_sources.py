"""Python sources inside a wheel, looked up by dotted name and parsed; nothing of them is imported or run."""

import ast
import re
import sys
from collections.abc import Iterator
from inspect import Parameter, Signature
from pathlib import Path
from zipfile import ZipFile

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.ImportFrom


class WheelSources:
    """The modules of one wheel."""

    def __init__(self, wheel: Path) -> None:
        self._wheel = ZipFile(wheel)
        self._files = frozenset(self._wheel.namelist())
        self._parsed: dict[str, ast.Module | None] = {}

    def definitions(self, name: str) -> list[Definition]:
        """What the dotted `name` may stand for: several where it is chosen at run time, none where it is not defined.

        Imports are followed inside the wheel, also `import *` and names that another name is assigned to; an import
        from the standard library is a definition.
        """
        parts = name.split(".")
        for split in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:split])
            if self._module(module) is not None:
                return list(self._inside(module, parts[split:]))
        return []

    def has(self, name: str) -> bool:
        """Whether the dotted `name` is a module or defined in one."""
        return self._module(name) is not None or bool(self.definitions(name))

    def text(self, module: str) -> str:
        """The source of a module, empty if there is none."""
        path = self._path(module)
        return self._wheel.read(path).decode() if path else ""

    def settings(self) -> set[str]:
        """The names that SGLang's server arguments may have: all that is annotated or defined where they are made."""
        found = set()
        for path in self._files:
            if not re.fullmatch(r"sglang/srt/(server_args|arg_groups/.+)\.py", path):
                continue
            for node in ast.walk(ast.parse(self._wheel.read(path))):
                match node:
                    case ast.AnnAssign(target=ast.Name(id=name)) | ast.FunctionDef(name=name):
                        found.add(name)
        return found

    def _inside(self, module: str, path: list[str], way: tuple[str, ...] = ()) -> Iterator[Definition]:
        """`way`: names whose imports led here. Modules import each other's for checkers of types."""
        here = f"{module}.{path[0]}"
        tree = self._module(module) if here not in way else None
        way = (*way, here)
        for definition in self._named(module, tree.body, path[0], way) if tree else ():
            if len(path) == 1:
                yield definition
            elif isinstance(definition, ast.ClassDef):
                yield from self._named(module, definition.body, path[1], way)

    def _named(self, module: str, body: list[ast.stmt], name: str, way: tuple[str, ...]) -> Iterator[Definition]:
        for statement in _statements(body):
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if statement.name == name:
                    yield statement
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    aliases = [value] if not isinstance(value, ast.IfExp) else [value.body, value.orelse]
                    if all(isinstance(alias, ast.Name) for alias in aliases):
                        for alias in aliases:
                            yield from self._named(module, body, alias.id, way)
                    else:
                        yield statement
                case ast.AnnAssign(target=ast.Name(id=target)) if target == name:
                    yield statement
                case ast.ImportFrom():
                    yield from self._imported(module, statement, name, way)

    def _imported(
        self, module: str, statement: ast.ImportFrom, name: str, way: tuple[str, ...]
    ) -> Iterator[Definition]:
        source = self._absolute(module, statement)
        for alias in statement.names:
            if alias.name == "*":
                yield from self._inside(source, [name], way)
            elif (alias.asname or alias.name) == name:
                if source.partition(".")[0] in sys.stdlib_module_names:
                    yield statement
                yield from self._inside(source, [alias.name], way)

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        package = module.split(".") if self._is_package(module) else module.split(".")[:-1]
        base = package[: len(package) - statement.level + 1]
        return ".".join([*base, *filter(None, [statement.module])])

    def _module(self, name: str) -> ast.Module | None:
        if name not in self._parsed:
            path = self._path(name)
            self._parsed[name] = ast.parse(self._wheel.read(path)) if path else None
        return self._parsed[name]

    def _path(self, module: str) -> str | None:
        path = module.replace(".", "/")
        candidates = (f"{path}.py", f"{path}/__init__.py")
        return next((candidate for candidate in candidates if candidate in self._files), None)

    def _is_package(self, name: str) -> bool:
        return f"{name.replace('.', '/')}/__init__.py" in self._files


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement of a module or class that is not inside a function, those under conditions too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _statements(statement.body)
            yield from _statements(getattr(statement, "orelse", []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def signature(definition: ast.FunctionDef | ast.AsyncFunctionDef) -> Signature:
    """The parameters of a function, `self` and `cls` included; default values are not evaluated."""
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = len(positional) - len(arguments.defaults)
    parameters = []
    for index, argument in enumerate(positional):
        kind = Parameter.POSITIONAL_ONLY if index < len(arguments.posonlyargs) else Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(Parameter(argument.arg, kind, default=Parameter.empty if index < optional else None))
    if arguments.vararg:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        kind = Parameter.KEYWORD_ONLY
        parameters.append(Parameter(argument.arg, kind, default=Parameter.empty if default is None else None))
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)
