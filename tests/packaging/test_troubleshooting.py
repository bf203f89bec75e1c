"""docs/troubleshooting.md lists every message that the package raises, and none that it does not."""

from __future__ import annotations

import ast
import re

import pytest

from sglang_ascend_moe import errors
from tests.packaging.source_tree import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
FOLDERS = ("sglang_ascend_moe", "graph_capture")
GAP = "…"
FAMILY = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.AscendMoeError) and kind is not errors.AscendMoeError
}
# Functions that return the words of an exception which is made elsewhere.
BUILT = {"failure", "_bad_choice", "_input_error", "_problem"}


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


def raised_messages() -> set[str]:
    """The message of every exception of the family that is made in the package."""
    found = set()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                if node.func.id in FAMILY or (path.name == "rendezvous.py" and node.func.id == "kind"):
                    found.add(text_of(node.args[0]))
            elif isinstance(node, ast.FunctionDef) and node.name in BUILT:
                returned = (part.value for part in ast.walk(node) if isinstance(part, ast.Return))
                found |= {text_of(value) for value in returned if value is not None}
    # Without a word of their own are those that pass on what such a function returned.
    return {message for message in found if re.search(r"[a-z]{2}", message)}


def listed_messages() -> list[str]:
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(), flags=re.MULTILINE)
    return [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]


def matches(phrase: str, message: str) -> bool:
    """Whether the words of the phrase stand in the message in their order, with gaps wherever either has one."""
    words = [word.strip() for word in phrase.split(GAP) if word.strip()]
    pattern = ".*".join(re.escape(word) for word in words)
    return re.search(pattern, message, flags=re.DOTALL) is not None


@pytest.mark.parametrize("message", sorted(raised_messages()), ids=lambda message: message[:60])
def test_every_message_is_listed(message):
    assert any(matches(phrase, message) for phrase in listed_messages()), message


@pytest.mark.parametrize("phrase", listed_messages(), ids=lambda phrase: phrase[:60])
def test_every_listed_message_exists(phrase):
    assert any(matches(phrase, message) for message in raised_messages()), phrase
