"""Every code of the package with what it means: `python -m tests.packaging.codes` writes docs/codes.md.

The meanings stand in the source files, below each code.
"""

from __future__ import annotations

import ast
import enum
import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from sglang_ascend_moe import errors
from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.disagg.deployment_events import Failure
from sglang_ascend_moe.native.codes import Result, Step
from sglang_ascend_moe.serving.launcher import exit_codes
from tests.packaging.source_tree import ROOT

PAGE = ROOT / "docs" / "codes.md"

INTRODUCTION = """# Codes

Programs compare codes; the words of a message may change. `python -m tests.packaging.codes` writes this page.
"""
EXCEPTIONS = """## Exceptions

`error.code` of every exception of the package, also in a [post-mortem](operations.md#when-a-rank-fails). What to do:
[troubleshooting](troubleshooting.md#exceptions). The exchange can be used on (`error.keeps_exchange`) after
"""
OPEN_ANEW = "Open a new one after"
EXIT_CODES = "## Exit codes\n\nOf `ascend-moe`, and of servers with `--ascend-moe`.\n"
RESULTS = "## Results of kernels\n\n`outcome` of a post-mortem. From `PEER_LOST` on the exchange is poisoned.\n"
STEPS = "## Steps\n\n`error.step` of a `PeerFault` in lower case; epochs count exchanges.\n"
FAILURES = "## Failures of a deployment\n\n`code` of the event `failed` of `ascend-moe disagg up --json`.\n"


def page() -> str:
    sections = (
        (EXCEPTIONS, f"{raised(keeps=True)}\n{OPEN_ANEW}\n\n{raised(keeps=False)}"),
        (EXIT_CODES, listed(exits())),
        (RESULTS, listed(meanings(Result))),
        (STEPS, listed(meanings(Step))),
        (FAILURES, listed(meanings(Failure))),
    )
    return "\n".join([INTRODUCTION, *(f"{introduction}\n{codes}" for introduction, codes in sections)])


def listed(codes: Iterable[tuple[object, str]]) -> str:
    return "".join(f"- `{code}`: {text[0].lower()}{text[1:]}\n" for code, text in codes)


def exceptions() -> list[type[AscendMoeError]]:
    """All that are raised, in the order of their module."""
    family = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AscendMoeError))
    return [kind for kind in family if kind not in (AscendMoeError, errors.PeerFault)]


def raised(*, keeps: bool) -> str:
    """The exceptions after which an exchange can be used on, or cannot, with their codes."""
    return "".join(
        f"- `{kind.__name__}`, `{kind.code}`: {_first_paragraph(kind)}\n"
        for kind in exceptions()
        if kind.keeps_exchange == keeps
    )


def _first_paragraph(kind: type) -> str:
    return " ".join(inspect.getdoc(kind).split("\n\n")[0].split())


def exits() -> Iterator[tuple[int, str]]:
    for name, text in described(ast.parse(inspect.getsource(exit_codes)).body):
        yield getattr(exit_codes, name), text


def meanings(codes: type[enum.Enum]) -> list[tuple[str, str]]:
    """Name and meaning of every member."""
    [kind] = ast.parse(inspect.getsource(codes)).body
    found = list(described(kind.body))
    if [name for name, _ in found] != list(codes.__members__):
        raise ValueError(f"a member of {codes.__name__} has no text below it")
    return found


def described(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Each name that is assigned, with the text below it."""
    for statement, following in pairwise(statements):
        match statement, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page())
