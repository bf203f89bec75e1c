"""The lists at the end of docs/sglang.md: hooks that mend SGLang, and what each of its checked versions lacks.

`python -m tests.versions.appendix` writes them, from the table of hooks and the wheels of these versions.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from packaging.version import Version

from sglang_ascend_moe.serving import hooks, plugin
from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, Where
from sglang_ascend_moe.serving.launcher import early_resolution, later_resolution
from sglang_ascend_moe.serving.npu import sampling_kernels
from sglang_ascend_moe.serving.sglang_release import DRAFTED, TESTED, TESTED_ON_NPUS, reaches
from tests.npu.device.build import alone
from tests.packaging.source_tree import ROOT, modules
from tests.versions.wheel_sources import WheelSources, signature

CHECKED = ["0.5.18", "0.5.20", *TESTED]
ABSENT = "absent"
RELEASES_OF_MODULES = {
    early_resolution.__name__: ("", early_resolution.UNTIL),
    later_resolution.__name__: (later_resolution.SINCE, ""),
    sampling_kernels.__name__: (DRAFTED, ""),
}
"""Modules that import from some releases of SGLang only: from the first of two on, before the second; empty: any."""
OF_HOSTS = ("serving.host.", "graph_capture.runners.attention", "graph_capture.runners.host_", "launch.bench.")
"""What the names of modules contain that servers on NPUs do not import, or not what these import from SGLang."""

PAGE = ROOT / "docs/sglang.md"
BEGIN_MENDED = "<!-- mended: written by `python -m tests.versions.appendix` -->\n"
BEGIN = "<!-- versions: written by `python -m tests.versions.appendix` -->\n"
END = "<!-- end -->\n"
# Where pytest keeps what it has downloaded, too.
WHEELS = ROOT / ".pytest_cache/d/sglang-wheels"


class NoWheel(Exception):
    """A wheel could not be downloaded."""


def download(version: str, folder: Path = WHEELS) -> Path:
    """The wheel of SGLang, from `folder` or from the package index. Raises `NoWheel` if it cannot be had."""
    # Another process may be downloading it, and pip copies in place.
    with alone(folder):
        return _in_folder(version, folder)


def _in_folder(version: str, folder: Path) -> Path:
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
    if hook.kind is HookKind.ADD:
        return "there already" if definitions else "" if sources.has(hook.target.rpartition(".")[0]) else ABSENT
    if not definitions:
        return ABSENT
    functions = [found for found in definitions if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)]
    if hook.kind is not HookKind.SET and len(functions) != len(definitions):
        return "not a function"
    misfits = (
        hooks.call_misfit(hook, signature(found), awaited=isinstance(found, ast.AsyncFunctionDef))
        for found in functions
    )
    return next(filter(None, misfits), "")


def modules_for(version: str) -> dict[str, Path]:
    """Those of `modules` that use this version of SGLang."""

    def is_for(module: str) -> bool:
        since, until = RELEASES_OF_MODULES.get(module, ("", ""))
        return reaches(since, version) and not (until and reaches(until, version))

    return {module: path for module, path in modules().items() if is_for(module)}


def imported_names(version: str = TESTED[-1]) -> dict[str, set[str]]:
    """Everything that the package imports from this version of SGLang, by dotted name -> our modules that do."""
    found: dict[str, set[str]] = {}
    for module, path in modules_for(version).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sglang":
                for alias in node.names:
                    found.setdefault(f"{node.module}.{alias.name}", set()).add(module)
    return found


def hooks_into_sglang(version: str) -> list[Hook]:
    """Those that this version needs, and whose targets are SGLang's: its wheel says nothing of hooks into uvicorn."""
    return [hook for hook in plugin.TABLE if hook.target.startswith("sglang.") and hooks.needed_in(hook, version)]


def for_npus_only(version: str) -> set[str]:
    """The dotted names of this version of SGLang that a host does without."""
    return _needed_on(Where.NPU, lambda module: "npu" in module, version)


def for_hosts_only(version: str) -> set[str]:
    """The dotted names of this version of SGLang that servers on NPUs do without."""
    return _needed_on(Where.HOST, lambda module: any(part in module for part in OF_HOSTS), version)


def _needed_on(where: Where, is_of: Callable[[str], bool], version: str) -> set[str]:
    """What only hooks of such machines, and modules for which `is_of` holds, need of a version of SGLang."""
    hooked: dict[str, set[Where]] = {}
    for hook in hooks_into_sglang(version):
        hooked.setdefault(hook.target, set()).add(hook.where)
    hooks_of_these = {name for name, machines in hooked.items() if machines == {where}}
    imported = {name for name, users in imported_names(version).items() if all(is_of(user) for user in users)}
    return hooks_of_these | imported - hooked.keys()


@cache
def problems(version: str) -> Mapping[str, str]:
    """Dotted name -> what is wrong with it in this version of SGLang. Raises `NoWheel`."""
    sources = WheelSources(download(version))
    found = {hook.target: hook_problem(hook, sources) for hook in hooks_into_sglang(version)}
    found |= {name: ABSENT for name in imported_names(version) if not sources.has(name)}
    return {name: problem for name, problem in found.items() if problem}


def differences(lacking: Mapping[str, Mapping[str, str]]) -> str:
    """What each version lacks: version -> dotted name -> problem. Names that the same versions lack come together."""
    absent: dict[str, list[str]] = {}
    others = []
    for name in sorted({name for found in lacking.values() for name in found}):
        by_version = {version: found[name] for version, found in lacking.items() if name in found}
        shown = name.removeprefix("sglang.")
        if set(by_version.values()) == {ABSENT}:
            absent.setdefault(", ".join(by_version), []).append(shown)
        else:
            by_problem: dict[str, list[str]] = {}
            for version, problem in by_version.items():
                by_problem.setdefault(problem, []).append(version)
            said = "; ".join(f"{', '.join(versions)}: {problem}" for problem, versions in by_problem.items())
            others.append(f"{shown}  # {said.replace('`', '')}")
    parts = [f"Absent from {versions}:\n\n{_block(names)}" for versions, names in absent.items()]
    return "\n".join([*parts, *([f"Different:\n\n{_block(others)}"] if others else [])])


def _block(lines: Iterable[str]) -> str:
    return "\n".join(["```", *lines, "```", ""])


def mended(table: Iterable[Hook]) -> str:
    """The hooks that mend a fault of a served SGLang, each function once, as a block. The page says until when, but for
    those of which more is known."""
    served = {*TESTED, *TESTED_ON_NPUS}
    lines = {
        f"{hook.target.removeprefix('sglang.')}{'' if hook.mends == SglangFault() else '  # ' + hook.mends.until()}"
        for hook in table
        if hook.mends is not None and any(hooks.needed_in(hook, version) for version in served)
    }
    return _block(sorted(lines))


def outlived(table: Iterable[Hook], served: Iterable[str]) -> list[str]:
    """Targets of hooks that mend what every served version of SGLang has mended itself."""
    oldest = min(map(Version, served))
    return [
        hook.target
        for hook in table
        if hook.mends is not None and hook.mends.mended_in and Version(hook.mends.mended_in) <= oldest
    ]


def on_page(begin: str = BEGIN, page: Path = PAGE) -> tuple[str, str, str]:
    """The page before the block that begins with `begin`, what the block holds, and what follows."""
    before, _, rest = page.read_text().partition(begin)
    found, _, after = rest.partition(END)
    return before, found, after


def main() -> None:
    """Write both between their markers."""
    before, _, after = on_page(BEGIN_MENDED)
    PAGE.write_text(before + BEGIN_MENDED + mended(plugin.TABLE) + END + after)
    before, _, after = on_page()
    PAGE.write_text(before + BEGIN + differences({version: problems(version) for version in CHECKED}) + END + after)


if __name__ == "__main__":
    main()
