"""What would have to be done to serve another release of SGLang: `make check-sglang VERSION=0.5.22`.

Its wheel is read, never imported: another release asks for another torch. `python -m tests.versions.check 0.5.22` exits
with 0 if nothing was found, 1 if something has to be done, 2 if the wheel cannot be had; make fails with both.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sglang_ascend_moe.serving.hooks import Hook
from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS
from sglang_ascend_moe.serving.sglang_release import reaches
from sglang_ascend_moe.serving.worker.moe_blocks import KNOWN_BLOCKS, class_digest
from tests.versions.appendix import (
    ABSENT,
    NoWheel,
    download,
    hook_problem,
    hooks_into_sglang,
    imported_names,
    modules_for,
)
from tests.versions.wheel_sources import WheelSources

_LAUNCHER = "sglang_ascend_moe.serving.launcher"


class Finding(NamedTuple):
    """Something of SGLang that is not as this package needs it; `work`: what has to be done about it, and where."""

    name: str
    problem: str
    work: str


def hook_findings(table: Sequence[Hook], sources: WheelSources) -> list[Finding]:
    """The hooks that do not apply."""
    problems = [(hook, hook_problem(hook, sources)) for hook in table]
    return [
        Finding(hook.target, problem, f"change the hook ({_place(hook)}), which is there because {hook.reason}")
        for hook, problem in problems
        if problem
    ]


def _place(hook: Hook) -> str:
    return getattr(hook.value, "__module__", None) or f"{hook.process.value}'s table"


def import_findings(imported: Mapping[str, set[str]], sources: WheelSources) -> list[Finding]:
    """The names that are imported from SGLang, each with our modules that do, and are not there."""
    return [
        Finding(name, ABSENT, f"import what took its place in {', '.join(sorted(users))}")
        for name, users in sorted(imported.items())
        if not sources.has(name)
    ]


def block_findings(known: Mapping[str, Mapping[str, str]], sources: WheelSources) -> list[Finding]:
    """The MoE blocks whose source was not compared; `known` as `KNOWN_BLOCKS`."""
    found = []
    for block, compared in known.items():
        module, _, name = block.rpartition(".")
        digest = class_digest(sources.text(f"sglang.srt.models.{module}"), name)
        if digest not in compared.values():
            problem = f"has the digest {digest}, which is none of {', '.join(compared.values())}" if digest else ABSENT
            work = "compare its family in tests/serving, then write the digest into serving/worker/moe_blocks.py"
            found.append(Finding(f"sglang.srt.models.{block}", problem, work))
    return found


def read_settings(version: str) -> dict[str, set[str]]:
    """The server arguments of this version that this package reads, by name -> our modules that do."""
    found: dict[str, set[str]] = {}
    for module, path in modules_for(version).items():
        # What the launcher calls settings may be a command line that is no server yet.
        owners = ("server_args", "settings") if module.startswith(_LAUNCHER) else ("server_args",)
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(ast.Name(id=owner) | ast.Attribute(attr=owner), name) if owner in owners:
                    found.setdefault(name, set()).add(module)
    for conflict in CONFLICTS:
        if conflict.flag.startswith("--") and reaches(conflict.since, version):
            name = conflict.flag.removeprefix("--").replace("-", "_")
            found.setdefault(name, set()).add(f"{_LAUNCHER}.conflicts")
    return found


def setting_findings(read: Mapping[str, set[str]], sources: WheelSources) -> list[Finding]:
    """The server arguments that are read, each with our modules that do, and are not there."""
    there = sources.settings()
    return [
        Finding(f"ServerArgs.{name}", ABSENT, f"do without it in {', '.join(sorted(readers))}")
        for name, readers in sorted(read.items())
        if name not in there
    ]


def findings(version: str) -> list[Finding]:
    """All of them, hooks first. Raises `NoWheel`."""
    sources = WheelSources(download(version))
    return [
        *hook_findings(hooks_into_sglang(version), sources),
        *import_findings(imported_names(version), sources),
        *block_findings(KNOWN_BLOCKS, sources),
        *setting_findings(read_settings(version), sources),
    ]


def newest() -> str:
    """The newest release on the package index. Raises `NoWheel` if the index does not say."""
    command = [sys.executable, "-m", "pip", "index", "versions", "sglang", "--disable-pip-version-check"]
    result = subprocess.run(command, capture_output=True, text=True)
    said = re.match(r"sglang \((\S+)\)", result.stdout)
    if said is None:
        raise NoWheel(f"the package index does not say which SGLang is the newest: name VERSION\n{result.stderr}")
    return said[1]


def main(arguments: Sequence[str]) -> int:
    """Prints what is found in the named version or, if none is named, in the newest."""
    try:
        version = next(iter(arguments), "") or newest()
        found = findings(version)
    except NoWheel as problem:
        print(f"{problem}`pip index versions sglang` shows what VERSION can be.", file=sys.stderr)
        return 2
    for finding in found:
        print(f"{finding.name}\n    {finding.problem}\n    {finding.work}")
    print(f"SGLang {version}: {len(found)} things to do" if found else f"SGLang {version}: nothing to do")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
