"""What each checked version of SGLang lacks of what this package needs: the table at the end of docs/sglang.md.

`python -m tests.versions.appendix` writes it, from the wheels of these versions.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from sglang_ascend_moe.serving import hooks, plugin
from sglang_ascend_moe.serving.hooks import Hook, Kind
from tests.packaging.source_tree import ROOT, modules
from tests.versions.wheel_sources import WheelSources, signature

SERVED = ["0.5.23"]
CHECKED = ["0.5.18", "0.5.20", "0.5.22", *SERVED]
ABSENT = "absent"

PAGE = ROOT / "docs/sglang.md"
BEGIN = "<!-- versions: written by `python -m tests.versions.appendix` -->\n"
END = "<!-- end -->\n"
# Where pytest keeps what it has downloaded, too.
WHEELS = ROOT / ".pytest_cache/d/sglang-wheels"


class NoWheel(Exception):
    """A wheel could not be downloaded."""


def download(version: str, folder: Path = WHEELS) -> Path:
    """The wheel of SGLang, from `folder` or from the package index. Raises `NoWheel` if it cannot be had."""
    wheels = list(folder.glob(f"sglang-{version}-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", f"sglang=={version}", "--no-deps", "--dest", str(folder)]
        # Always the same wheel, whatever machine this is: only its Python sources are read.
        platform = ["--only-binary=:all:", "--platform=manylinux_2_34_x86_64", "--python-version=3.11"]
        quiet = ["--quiet", "--disable-pip-version-check", "--retries=2"]
        result = subprocess.run([*command, *platform, *quiet], capture_output=True, text=True)
        wheels = list(folder.glob(f"sglang-{version}-*.whl"))
        if result.returncode or not wheels:
            raise NoWheel(
                f"the wheel of SGLang {version} could not be downloaded, and without it nobody knows whether the hooks"
                f" fit: this needs a package index that has it\n{result.stderr}"
            )
    return wheels[0]


def hook_problem(hook: Hook, sources: WheelSources) -> str:
    """Why a hook does not fit this SGLang, in the words of the table; empty if it fits."""
    definitions = sources.definitions(hook.target)
    if hook.kind is Kind.ADD:
        return "there already" if definitions else "" if sources.has(hook.target.rpartition(".")[0]) else ABSENT
    if not definitions:
        return ABSENT
    functions = [found for found in definitions if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)]
    if hook.kind is not Kind.SET and len(functions) != len(definitions):
        return "not a function"
    return next(filter(None, (hooks.call_misfit(hook, signature(found)) for found in functions)), "")


def imported_names() -> set[str]:
    """Everything that the package imports from SGLang, by dotted name."""
    found = set()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sglang":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def problems(version: str) -> Mapping[str, str]:
    """Dotted name -> what is wrong with it in this version of SGLang. Raises `NoWheel`."""
    sources = WheelSources(download(version))
    found = {hook.target: hook_problem(hook, sources) for hook in plugin.TABLE}
    found |= {name: ABSENT for name in imported_names() if not sources.has(name)}
    return {name: problem for name, problem in found.items() if problem}


def table(lacking: Mapping[str, Mapping[str, str]]) -> str:
    """The Markdown table of `lacking`: version -> dotted name -> problem. Versions that lack nothing have no column."""
    columns = {version: found for version, found in lacking.items() if found}
    rows = sorted({name for found in columns.values() for name in found})
    header = f"| `sglang.` … | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"
    return header + "".join(
        f"| `{name.removeprefix('sglang.')}` | {' | '.join(found.get(name, '') for found in columns.values())} |\n"
        for name in rows
    )


def on_page() -> tuple[str, str, str]:
    """The page before the table, the table that it has, and what follows."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    found, _, after = rest.partition(END)
    return before, found, after


def main() -> None:
    """Write the table between its markers."""
    before, _, after = on_page()
    PAGE.write_text(before + BEGIN + table({version: problems(version) for version in CHECKED}) + END + after)


if __name__ == "__main__":
    main()
