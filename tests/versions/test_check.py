"""What `make check-sglang` finds in a release of SGLang."""

import os
from pathlib import Path
from zipfile import ZipFile

import pytest

from sglang_ascend_moe.serving.hooks import Hook, HookKind
from sglang_ascend_moe.serving.sglang_release import TESTED
from sglang_ascend_moe.serving.worker.moe_blocks import class_digest
from tests.versions import check
from tests.versions.appendix import ABSENT
from tests.versions.check import Finding, block_findings, hook_findings, import_findings, setting_findings
from tests.versions.wheel_sources import WheelSources

BLOCK = "class Block:\n    def forward(self, rows): ...\n"
RELEASE = {
    "sglang/srt/changed.py": "def f(rows): ...\n",
    "sglang/srt/models/small.py": f"import torch\n\n\n{BLOCK}\n\nclass Other: ...\n",
    "sglang/srt/server_args.py": "class ServerArgs:\n    here: int = 0\n    def resolve(self): ...\n",
    "sglang/srt/arg_groups/fields/more.py": "class More:\n    there: int = 0\n",
    "sglang/srt/other.py": "class Other:\n    elsewhere: int = 0\n",
}


@pytest.fixture
def release(tmp_path: Path) -> WheelSources:
    with ZipFile(tmp_path / "release.whl", "w") as wheel:
        for name, text in RELEASE.items():
            wheel.writestr(name, text)
    return WheelSources(tmp_path / "release.whl")


def fitting(original, rows):
    """A hook around `f`."""


def changed(original, ids):
    """A hook around an `f` that had another parameter."""


@pytest.mark.parametrize(
    ("target", "function", "problem"),
    [
        pytest.param("f", fitting, None, id="fits"),
        pytest.param("f", changed, "has `rows` where `ids` is expected", id="changed"),
        pytest.param("g", fitting, ABSENT, id="gone"),
    ],
)
def test_a_hook_that_does_not_apply_is_named_with_its_module(release: WheelSources, target, function, problem):
    hook = Hook(f"sglang.srt.changed.{target}", HookKind.AROUND, function, "the test needs it")
    work = f"change the hook ({__name__}), which is there because the test needs it"
    assert hook_findings([hook], release) == ([Finding(hook.target, problem, work)] if problem else [])


def test_a_name_that_is_imported_and_gone_is_named_with_who_imports_it(release: WheelSources):
    imported = {"sglang.srt.changed.f": {"ours.a"}, "sglang.srt.changed.gone": {"ours.b", "ours.a"}}
    (found,) = import_findings(imported, release)
    assert found == Finding("sglang.srt.changed.gone", ABSENT, "import what took its place in ours.a, ours.b")


@pytest.mark.parametrize(
    ("block", "compared", "problem"),
    [
        pytest.param("small.Block", class_digest(BLOCK, "Block"), None, id="compared"),
        pytest.param("small.Block", "another", f"has the digest {class_digest(BLOCK, 'Block')}", id="changed"),
        pytest.param("small.Gone", "another", ABSENT, id="class-gone"),
        pytest.param("gone.Block", "another", ABSENT, id="model-gone"),
    ],
)
def test_a_block_that_was_not_compared_is_named_with_its_digest(release: WheelSources, block, compared, problem):
    found = block_findings({block: {"0.5.1": compared}}, release)
    assert [(finding.name, finding.problem.partition(",")[0]) for finding in found] == (
        [(f"sglang.srt.models.{block}", problem)] if problem else []
    )


def test_a_setting_that_is_read_and_gone_is_named_with_who_reads_it(release: WheelSources):
    read = {name: {"ours"} for name in ("here", "there", "resolve", "elsewhere")}
    assert setting_findings(read, release) == [Finding("ServerArgs.elsewhere", ABSENT, "do without it in ours")]


def test_settings_of_the_table_of_conflicts_and_of_the_code_are_looked_for():
    read = check.read_settings("0.5.23")
    assert "sglang_ascend_moe.serving.launcher.conflicts" in read["enable_paged_experts"]
    assert "enable_paged_experts" not in check.read_settings("0.5.22")
    assert "sglang_ascend_moe.serving.host.host_memory" in read["max_running_requests"]


def test_in_the_version_that_everything_is_tested_with_there_is_nothing_to_do(capsys):
    assert check.main([TESTED[-1]]) == 0
    assert capsys.readouterr().out == f"SGLang {TESTED[-1]}: nothing to do\n"


def test_in_another_version_everything_to_do_is_listed(capsys):
    assert check.main(["0.5.18"]) == 1
    said = capsys.readouterr().out
    for name in (
        "sglang.srt.layers.dp_attention.memcpy_func",
        "models.qwen2_moe.Qwen2MoeSparseMoeBlock",
        "ServerArgs.resolve_once",
    ):
        assert name in said


@pytest.mark.parametrize("arguments", [[], ["0.0.0"]], ids=["newest", "named"])
def test_without_its_wheel_the_check_says_what_to_give(arguments: list[str], monkeypatch, capsys):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert check.main(arguments) == 2
    assert "VERSION" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_newest_release_on_the_index_is_served():
    assert check.main([]) == 0
