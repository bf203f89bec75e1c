"""Faults seeded into the Ascend kernels, each with the test that has to notice it.

`python -m tests.ascend.report_mutations` applies them all and prints who caught what and how.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.exchange.pool import RanksFailed

from .conftest import AscendPools, Objects, delayed
from .host_model import KERNEL_SOURCES, KERNELS, compile_source, link


class Mutation(NamedTuple):
    """Replaces `old`, which stands once in `file`, by `new`; `test`, called with `arguments`, has to fail; `late`: with
    the model's delayed mode."""

    name: str
    file: str
    old: str
    new: str
    test: Callable[..., None]
    arguments: Mapping[str, object] = {}
    late: bool = False


class Catch(NamedTuple):
    """Whether a test noticed the fault, and in which words."""

    caught: bool
    words: str


def build_mutant(mutation: Mutation, objects: Objects, folder: Path) -> str:
    """Compiles the kernels with the fault into a library; raises ValueError if the place of the fault is not there."""
    copies = folder / "ascend"
    copies.mkdir()
    for source in (KERNELS / "ascend").glob("*.*"):
        shutil.copy(source, copies)
    target = copies / mutation.file
    text = target.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {text.count(mutation.old)} places in {mutation.file} instead of one")
    target.write_text(text.replace(mutation.old, mutation.new))
    kernels = []
    for source, compiled in zip(KERNEL_SOURCES, objects.kernels, strict=True):
        touched = mutation.file in (source.name, *_headers_of(source))
        kernels.append(
            compile_source(copies / source.name, folder / compiled.name, strict=False) if touched else compiled
        )
    others = delayed(objects, folder).others if mutation.late else objects.others
    return str(link([*kernels, *others], folder / "libmutant.so"))


def _headers_of(source: Path) -> set[str]:
    """The kernels' own headers that a source includes, directly or not."""
    found: set[str] = set()
    waiting = [source]
    while waiting:
        for line in waiting.pop().read_text().splitlines():
            name = line.removeprefix('#include "').rstrip('"')
            header = KERNELS / "ascend" / name
            if line.startswith('#include "') and name not in found and header.is_file():
                found.add(name)
                waiting.append(header)
    return found


def try_mutant(mutation: Mutation, pools: AscendPools, library: str) -> Catch:
    """Runs the test that has to notice the fault."""
    try:
        mutation.test(pools=pools, library=library, **mutation.arguments)
    except (AssertionError, RanksFailed) as failure:
        return Catch(True, _words(str(failure)))
    return Catch(False, "the test passed")


def _words(text: str) -> str:
    """The line that says most: what the model reports, else the last error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for sign in ("ModelViolated: ", "AssertionError: ", "Error: ", "Timeout: ", "Lost: ", "did not finish"):
        for line in lines:
            if sign in line:
                return line.partition("ModelViolated: ")[2] or line
    return lines[-1] if lines else "failed"
