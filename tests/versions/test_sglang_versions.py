"""Every hook target, its signature and every name imported from SGLang, in the wheels of several SGLang versions.

What a version lacks is listed in docs/sglang.md; a version that lacks anything is not served.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from sglang_ascend_moe import hooks, plugin
from sglang_ascend_moe.hooks import Hook, Kind
from tests.packaging.source_tree import ROOT, modules
from tests.versions.wheel_sources import WheelSources, signature

SERVED = ["0.5.23"]
CHECKED = ["0.5.18", "0.5.20", "0.5.22", *SERVED]
ABSENT = "absent"


def download(version: str, folder: Path) -> Path:
    """The wheel of SGLang, from the folder or from the package index. Fails the test if it cannot be had."""
    wheels = list(folder.glob(f"sglang-{version}-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", f"sglang=={version}", "--no-deps", "--dest", str(folder)]
        # Always the same wheel, whatever machine this is: only its Python sources are read.
        platform = ["--only-binary=:all:", "--platform=manylinux_2_34_x86_64", "--python-version=3.11"]
        quiet = ["--quiet", "--disable-pip-version-check", "--retries=2"]
        result = subprocess.run([*command, *platform, *quiet], capture_output=True, text=True)
        wheels = list(folder.glob(f"sglang-{version}-*.whl"))
        if result.returncode or not wheels:
            pytest.fail(
                f"the wheel of SGLang {version} could not be downloaded, and without it nobody knows whether the hooks"
                f" fit: this test needs a package index that has it\n{result.stderr}"
            )
    return wheels[0]


@pytest.fixture(scope="module", params=CHECKED)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sources(version: str, request: pytest.FixtureRequest) -> WheelSources:
    return WheelSources(download(version, request.config.cache.mkdir("sglang-wheels")))


def hook_problem(hook: Hook, sources: WheelSources) -> str:
    """Why a hook does not fit this SGLang, in the words of docs/sglang.md; empty if it fits."""
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


def problems(sources: WheelSources) -> dict[str, str]:
    """Dotted name -> what is wrong with it."""
    found = {hook.target: hook_problem(hook, sources) for hook in plugin.TABLE}
    found |= {name: ABSENT for name in imported_names() if not sources.has(name)}
    return {name: problem for name, problem in found.items() if problem}


def listed_problems() -> Iterator[tuple[str, str, str]]:
    """(version, name, problem) of every cell of the table in docs/sglang.md that is not empty."""
    _, page = (ROOT / "docs/sglang.md").read_text().split("## Versions")
    header, _, *rows = re.findall(r"^\|(.+)\|$", page.split("\n## ")[0], flags=re.MULTILINE)
    versions = [cell.strip() for cell in header.split("|")][1:]
    for row in rows:
        name, *cells = (cell.strip() for cell in row.split("|"))
        for version, cell in zip(versions, cells, strict=True):
            if cell:
                yield version, f"sglang.{name.strip('`')}", cell


def test_what_a_version_lacks_is_what_the_page_lists(version: str, sources: WheelSources):
    listed = {name: problem for listed, name, problem in listed_problems() if listed == version}
    assert problems(sources) == listed


def test_a_version_is_served_if_it_lacks_nothing_and_the_package_asks_for_it():
    lacking = {version for version, _, _ in listed_problems()}
    assert [version for version in CHECKED if version not in lacking] == SERVED
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (sglang,) = (Requirement(text) for text in dependencies if Requirement(text).name == "sglang")
    assert [version for version in CHECKED if sglang.specifier.contains(version)] == SERVED


def test_the_readme_says_which_versions_are_served_and_which_only_checked():
    rows = re.findall(r"^\| (0\.5\.\d+(?:, 0\.5\.\d+)*) \| (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    said = {version: word for versions, word in rows for version in versions.split(", ")}
    assert said == {version: "served" if version in SERVED else "checked" for version in CHECKED}


CHANGED = {
    "changed.py": """
from changed_too import f as again
from changed_too import *
def f(rows): ...
def other(ids): ...
def anything(*args, **kwargs): ...
constant = 1
chosen = f if constant else other
class C:
    def f(self, *, size): ...
""",
    "changed_too.py": """
def f(rows): ...
def starred(rows): ...
""",
}


@pytest.mark.parametrize(
    ("target", "kind", "parameters", "problem"),
    [
        pytest.param("f", Kind.AROUND, "original, rows", "", id="fits"),
        pytest.param("f", Kind.AROUND, "original, _rows", "", id="unused"),
        pytest.param("f", Kind.AROUND, "original, x, /", "", id="by-position"),
        pytest.param("f", Kind.BEFORE, "*_, **__", "", id="takes-anything"),
        pytest.param("f", Kind.AFTER, "*_, **__", "", id="takes-anything-afterwards"),
        pytest.param("f", Kind.AROUND, "original, ids", "has `rows` where `ids` is expected", id="renamed"),
        pytest.param("f", Kind.AROUND, "original", "has one more parameter, `rows`", id="added"),
        pytest.param("f", Kind.AROUND, "original, **_", "has one more parameter, `rows`", id="added-by-position"),
        pytest.param("f", Kind.AROUND, "original, rows, ids", "has no parameter `ids`", id="removed"),
        pytest.param("f", Kind.AROUND, "original, rows, *, ids", "has no parameter `ids`", id="removed-by-name"),
        pytest.param("anything", Kind.AROUND, "original, rows, *, ids", "", id="takes-anything-itself"),
        pytest.param("C.f", Kind.AFTER, "result, it, *, size", "", id="method"),
        pytest.param("C.f", Kind.AFTER, "result, it, **_", "", id="takes-any-name"),
        pytest.param("C.f", Kind.AFTER, "result, it", "has one more parameter, `size`", id="added-by-name"),
        pytest.param("chosen", Kind.REPLACE, "rows", "has `ids` where `rows` is expected", id="chosen-at-run-time"),
        pytest.param("again", Kind.REPLACE, "rows", "", id="imported"),
        pytest.param("starred", Kind.REPLACE, "rows", "", id="imported-with-star"),
        pytest.param("constant", Kind.SET, "", "", id="constant"),
        pytest.param("constant", Kind.BEFORE, "", "not a function", id="not-a-function"),
        pytest.param("C.g", Kind.ADD, "it", "", id="new"),
        pytest.param("C.f", Kind.ADD, "it", "there already", id="not-new"),
        pytest.param("D.g", Kind.ADD, "it", ABSENT, id="new-in-nothing"),
        pytest.param("g", Kind.BEFORE, "", ABSENT, id="gone"),
        pytest.param("C.g", Kind.BEFORE, "", ABSENT, id="method-gone"),
    ],
)
def test_the_check_sees_what_changed(target: str, kind: Kind, parameters: str, problem: str, tmp_path: Path):
    with ZipFile(tmp_path / "changed.whl", "w") as wheel:
        for name, text in CHANGED.items():
            wheel.writestr(name, text)
    hook = Hook(f"changed.{target}", kind, eval(f"lambda {parameters}: None"), "the test needs it")
    assert hook_problem(hook, WheelSources(tmp_path / "changed.whl")) == problem


def test_without_a_package_index_the_check_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(pytest.fail.Exception, match=r"the wheel of SGLang 0\.5\.18 could not be"):
        download("0.5.18", tmp_path)
