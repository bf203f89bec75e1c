"""Every hook target, its signature and every name imported from SGLang, in the wheels of several SGLang versions.

What a version lacks is the appendix of docs/sglang.md, which `appendix` writes; a version that lacks anything is not
served.
"""

import os
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from sglang_ascend_moe.serving import plugin
from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, Where
from sglang_ascend_moe.serving.sglang_release import TESTED, TESTED_ON_NPUS
from tests.packaging.source_tree import ROOT
from tests.versions.appendix import (
    ABSENT,
    BEGIN_MENDED,
    CHECKED,
    NoWheel,
    differences,
    download,
    for_hosts_only,
    for_npus_only,
    hook_problem,
    mended,
    on_page,
    outlived,
    problems,
)
from tests.versions.wheel_sources import WheelSources


def test_the_appendix_of_the_page_is_what_the_wheels_lack():
    _, found, after = on_page()
    assert found == differences({version: problems(version) for version in CHECKED})
    assert after == "", "the lists are the end of the page"


def test_the_page_lists_the_hooks_that_mend_sglang():
    _, found, _ = on_page(BEGIN_MENDED)
    assert found == mended(plugin.TABLE)


@pytest.mark.parametrize(
    ("since", "until", "listed"),
    [("", "", True), ("", "0.5.23", True), ("", "0.5.9", False), ("0.5.23", "", True), ("0.5.99", "", False)],
)
def test_a_hook_that_no_served_sglang_needs_is_not_on_the_page(since: str, until: str, listed: bool):
    hook = Hook("sglang.f", HookKind.BEFORE, print, "the test needs it", mends=SglangFault(), since=since, until=until)
    assert ("f" in mended([hook]).splitlines()) is listed


def test_a_hook_goes_when_every_served_sglang_has_mended_the_fault():
    of_hosts = [hook for hook in plugin.TABLE if hook.where is Where.HOST]
    assert outlived(of_hosts, TESTED) == []
    assert outlived(plugin.TABLE, {*TESTED, *TESTED_ON_NPUS}) == []


@pytest.mark.parametrize(
    ("fault", "goes"),
    [
        pytest.param(None, False, id="mends-nothing"),
        pytest.param(SglangFault(), False, id="mended-in-no-version"),
        pytest.param(SglangFault(mended_in="0.5.24"), False, id="mended-later"),
        pytest.param(SglangFault(mended_in="0.5.23"), False, id="mended-in-the-newest-served-version"),
        pytest.param(SglangFault(mended_in="0.5.22"), True, id="mended-in-all-served-versions"),
        pytest.param(SglangFault(mended_in="0.5.9"), True, id="mended-before"),
    ],
)
def test_a_hook_for_a_fault_that_is_no_more_is_seen(fault: SglangFault | None, goes: bool):
    hook = Hook("changed.f", HookKind.BEFORE, lambda: None, "the test needs it", mends=fault)
    assert outlived([hook], ["0.5.22", "0.5.23"]) == (["changed.f"] if goes else [])


def test_a_version_is_served_if_it_lacks_nothing_that_is_needed_there_and_the_package_asks_for_it():
    lacking = [version for version in CHECKED if problems(version).keys() - for_npus_only(version)]
    assert [version for version in CHECKED if version not in lacking] == list(TESTED)
    assert [version for version in CHECKED if problems(version).keys() - for_hosts_only(version)] == []
    assert problems(TESTED[-1]) == {}
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (sglang,) = (Requirement(text) for text in dependencies if Requirement(text).name == "sglang")
    assert {version for version in CHECKED if sglang.specifier.contains(version)} == {*TESTED, *TESTED_ON_NPUS}


CHANGED = {
    "changed.py": """
from changed_too import f as again
from changed_too import *
def f(rows): ...
def other(ids): ...
def placed(rows, /): ...
async def awaited(rows): ...
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
        pytest.param("f", HookKind.AROUND, "original, rows", "", id="fits"),
        pytest.param("f", HookKind.AROUND, "original, _rows", "has `rows` where `_rows` is expected", id="unused"),
        pytest.param("placed", HookKind.AROUND, "original, _rows", "", id="unused-by-position"),
        pytest.param("f", HookKind.AROUND, "original, x, /", "", id="by-position"),
        pytest.param("f", HookKind.BEFORE, "*_, **__", "", id="takes-anything"),
        pytest.param("f", HookKind.AFTER, "*_, **__", "", id="takes-anything-afterwards"),
        pytest.param("f", HookKind.AROUND, "original, ids", "has `rows` where `ids` is expected", id="renamed"),
        pytest.param("f", HookKind.AROUND, "original", "has one more parameter, `rows`", id="added"),
        pytest.param("f", HookKind.AROUND, "original, **_", "has one more parameter, `rows`", id="added-by-position"),
        pytest.param("f", HookKind.AROUND, "original, rows, ids", "has no parameter `ids`", id="removed"),
        pytest.param("f", HookKind.AROUND, "original, rows, *, ids", "has no parameter `ids`", id="removed-by-name"),
        pytest.param("anything", HookKind.AROUND, "original, rows, *, ids", "", id="takes-anything-itself"),
        pytest.param("C.f", HookKind.AFTER, "result, it, *, size", "", id="method"),
        pytest.param("C.f", HookKind.AFTER, "result, it, **_", "", id="takes-any-name"),
        pytest.param("C.f", HookKind.AFTER, "result, it", "has one more parameter, `size`", id="added-by-name"),
        pytest.param("chosen", HookKind.REPLACE, "rows", "has `ids` where `rows` is expected", id="chosen-at-run-time"),
        pytest.param("again", HookKind.REPLACE, "rows", "", id="imported"),
        pytest.param("starred", HookKind.REPLACE, "rows", "", id="imported-with-star"),
        pytest.param("constant", HookKind.SET, "", "", id="constant"),
        pytest.param("constant", HookKind.BEFORE, "", "not a function", id="not-a-function"),
        pytest.param("C.g", HookKind.ADD, "it", "", id="new"),
        pytest.param("C.f", HookKind.ADD, "it", "there already", id="not-new"),
        pytest.param("D.g", HookKind.ADD, "it", ABSENT, id="new-in-nothing"),
        pytest.param("g", HookKind.BEFORE, "", ABSENT, id="gone"),
        pytest.param("C.g", HookKind.BEFORE, "", ABSENT, id="method-gone"),
    ],
)
def test_the_check_sees_what_changed(target: str, kind: HookKind, parameters: str, problem: str, tmp_path: Path):
    with ZipFile(tmp_path / "changed.whl", "w") as wheel:
        for name, text in CHANGED.items():
            wheel.writestr(name, text)
    hook = Hook(f"changed.{target}", kind, eval(f"lambda {parameters}: None"), "the test needs it")
    assert hook_problem(hook, WheelSources(tmp_path / "changed.whl")) == problem


@pytest.mark.parametrize(("target", "problem"), [("awaited", ""), ("f", "is not awaited")])
def test_the_check_sees_what_is_not_awaited(target: str, problem: str, tmp_path: Path):
    async def waiting(_original, rows): ...

    with ZipFile(tmp_path / "changed.whl", "w") as wheel:
        for name, text in CHANGED.items():
            wheel.writestr(name, text)
    hook = Hook(f"changed.{target}", HookKind.AROUND, waiting, "the test needs it")
    assert hook_problem(hook, WheelSources(tmp_path / "changed.whl")) == problem


def test_without_a_package_index_the_check_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NoWheel, match=r"the wheel of SGLang 0\.5\.18 could not be"):
        download("0.5.18", tmp_path)
