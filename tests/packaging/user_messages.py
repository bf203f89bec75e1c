"""The messages that a user of the package can meet, read from its source files without running them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from sglang_ascend_moe import errors
from tests.packaging.source_tree import ROOT

FOLDERS = ("sglang_ascend_moe", "graph_capture", "launch")
GAP = "…"
FAMILY = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.AscendMoeError) and kind is not errors.AscendMoeError
}
# Functions that return the words of an exception which is made elsewhere.
BUILT = {
    "failure", "_bad_choice", "input_problem", "routed_tokens", "problem_with_result", "problem_with_expert_out",
    "problem_with_phase", "wrong_kind", "problem_with_experts",
    "_objection_to_handle", "lack_of_memory", "_dispatch_problem", "_problem_with_statistics", "_unfinished",
    "cause_of", "loss_of", "refusal", "_drift",
}  # fmt: skip
# Functions that are handed words and raise or print them: which argument it is.
HANDED = {"refuse": 1, "refuse_capture": 0, "error": 0, "ControlRequest": 2}
# Attributes that keep words until something is raised.
KEPT = {"_poison"}
# Exceptions of other libraries with which a command ends: argparse prints what it says.
FOREIGN = {"ArgumentTypeError"}


class Raised(NamedTuple):
    """A place that raises `exception`: `file` is relative to the repository, `message` has a gap for every value."""

    file: str
    exception: str
    message: str
    source: str


def text_of(node: ast.expr) -> str:
    """A message with a gap for every value."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return text_of(left) + text_of(right)
        case _:
            return GAP


def has_words(message: str) -> bool:
    """Whether a message says anything of its own, besides the name of the command that prints it."""
    return re.search(r"[a-z]{2}", re.sub(r"^\s*ascend-moe( [a-z]+)*: ", "", message)) is not None


@cache
def sources() -> dict[str, ast.Module]:
    """File, relative to the repository -> its syntax tree."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def own_exceptions() -> set[str]:
    """Names of the exceptions that the package defines."""
    return FAMILY | {
        node.name
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in {"Exception", *FAMILY} for base in node.bases)
    }


def raised() -> Iterator[Raised]:
    """Every `raise` that makes an exception."""
    for file, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                arguments = node.exc.args
                message = text_of(arguments[0]) if arguments else ""
                yield Raised(file, _name(node.exc), message, ast.unparse(node.exc))


def refusals_of_kernels() -> set[str]:
    """What the Ascend kernels say of a window that they cannot serve; the package passes it on."""
    source = (ROOT / "kernels/ascend/launch/limits.h").read_text()
    texts = re.findall(r'(?:"(?:[^"\\]|\\.)*"\s*)+', source.partition("RefuseLayout(")[2])
    sentences = {re.sub(r"%\w+", GAP, "".join(re.findall(r'"([^"]*)"', text))) for text in texts}
    return {sentence for sentence in sentences if sentence.count(" ") > 5}


@cache
def messages() -> frozenset[str]:
    """Every message with words of its own."""
    exceptions = own_exceptions() | FOREIGN
    found = refusals_of_kernels()
    for tree in sources().values():
        for node in ast.walk(tree):
            found |= {text_of(words) for words in _words_of(node, exceptions)}
    # What ends in dots tells of progress.
    return frozenset(message for message in found if has_words(message) and not message.endswith(" ..."))


def _words_of(node: ast.AST, exceptions: set[str]) -> Iterator[ast.expr]:
    match node:
        case ast.Call(args=arguments) if _name(node) in exceptions and arguments:
            yield arguments[0]
        case ast.Call(args=arguments) if len(arguments) > HANDED.get(_name(node), len(arguments)):
            yield arguments[HANDED[_name(node)]]
        case ast.Call(args=[ast.Constant(value=2), ast.Call(func=ast.Attribute(value=words, attr="encode"))]):
            # os.write(2, "...".encode()), where a print may wait for a lock.
            yield words
        case ast.Call(args=[words, *_], keywords=keywords) if _name(node) == "print":
            if any(keyword.arg == "file" and ast.unparse(keyword.value) == "sys.stderr" for keyword in keywords):
                yield words
        case ast.FunctionDef(name=name) if name in BUILT:
            for part in ast.walk(node):
                if isinstance(part, ast.Return) and part.value is not None:
                    yield part.value
        case ast.Assign(targets=[ast.Attribute(attr=name)], value=value) if name in KEPT:
            yield value


def _name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
