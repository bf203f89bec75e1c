"""What earlier releases of SGLang serve: `make test-sglang VERSION=0.5.22` tests one and writes down what passed.

The results are in `served.json`; `python -m tests.versions.served` writes the table of README.md from them.
"""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.serving.sglang_release import TESTED, TESTED_ON_NPUS
from tests.packaging.source_tree import ROOT
from tests.versions.appendix import END, on_page
from tests.versions.environment import environment, python_with

RESULTS = Path(__file__).with_name("served.json")
README = ROOT / "README.md"
BEGIN = "<!-- served: written by `python -m tests.versions.served` -->\n"
TESTS = {
    "hooks": ["tests/serving/test_hooks.py"],
    "demo": ["tests/launch/test_demo.py"],
    "tokens": ["tests/serving/test_greedy_tokens.py", "tests/serving/test_batching.py"],
    "families": ["tests/serving/test_families.py::test_two_ranks_give_the_tokens_of_stock_sglang_on_one"],
    "graphs": ["tests/serving/test_decode_graphs.py"],
    "prefill and decode apart": ["tests/launch/disagg/test_deployed.py"],
}
"""What is said to be served on hosts -> the tests that show it."""
ON_NPUS = {
    "hooks": ["tests/serving/test_hooks.py"],
    "demo": ["tests/npu/test_emulated_demo.py"],
    "tokens": ["tests/serving/test_emulated_npu.py::test_answers_and_steps_of_exchanges"],
    "families": [
        f"tests/serving/test_emulated_npu_{attention}.py::test_two_ranks_give_the_bits_of_stock_sglang_on_one"
        for attention in ("families", "sparse_attention")
    ],
    "W8A8 and W4A8": ["tests/serving/test_quantised_npu_servers.py::test_answers_are_those_of_stock_sglang"],
}
"""The same on emulated NPUs."""
EARLIER = sorted({*TESTED[:-1], *TESTED_ON_NPUS[:-1]})


class Served(msgspec.Struct, frozen=True):
    """A release that passed. torch: its version; passed: of each kind of `TESTS` so many."""

    date: str
    torch: str
    passed: Mapping[str, int]


class Run(NamedTuple):
    """Of tests in the environment of a release: those that passed, by their files, and the others by name."""

    passed: Mapping[str, int]
    failed: list[str]


def selection(version: str) -> Mapping[str, list[str]]:
    """Those of a release."""
    return TESTS if version in TESTED else ON_NPUS


def run(version: str, python: Path) -> Run:
    """Run all of `selection` a release with an interpreter of its environment, showing what pytest says."""
    files = [file for kind in selection(version).values() for file in kind]
    every = [] if version in TESTED else ["-m", ""]
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [python, "-m", "pytest", "-q", *every, f"--junitxml={report}", "-o", "junit_family=xunit1", *files]
        subprocess.run(command, cwd=ROOT, env=environment())
        cases = list(ElementTree.parse(report).iter("testcase"))
    good = [case for case in cases if all(child.tag in ("properties", "system-out", "system-err") for child in case)]
    passed = {file: sum(case.get("file") == file.partition("::")[0] for case in good) for file in files}
    return Run(passed, [f"{case.get('classname')}::{case.get('name')}" for case in cases if case not in good])


def results() -> dict[str, Served]:
    """Release -> what passed."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Served])


def version_of_torch(python: Path) -> str:
    """The version that an environment has."""
    program = "from importlib.metadata import version; print(version('torch'))"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def table(found: Mapping[str, Served]) -> str:
    """The table of README.md."""
    places = {version: "hosts" if version in TESTED else "emulated NPUs" for version in found}
    rows = [
        f"| {version} | {one.torch} | {sum(one.passed.values())} tests on {places[version]} |"
        for version, one in found.items()
    ]
    newest = f"| {TESTED[-1]} | {version_of_torch(Path(sys.executable))} | all |"
    return "\n".join(["| SGLang | torch | passed |", "|---|---|---|", *rows, newest, ""])


def write_table() -> None:
    """Into README.md, between its markers."""
    before, _, after = on_page(BEGIN, README)
    README.write_text(before + BEGIN + table(results()) + END + after)


def main(version: str) -> int:
    """Tests a release; if everything passed, writes that down."""
    python = python_with(version)
    found = run(version, python)
    if found.failed or not all(found.passed.values()):
        print("\n".join(["Not served:", *found.failed, *(file for file, count in found.passed.items() if not count)]))
        return 1
    passed = {kind: sum(found.passed[file] for file in files) for kind, files in selection(version).items()}
    kept = results() | {version: Served(f"{datetime.now(UTC):%Y-%m-%d}", version_of_torch(python), passed)}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(kept.items()))), indent=2) + b"\n")
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if sys.argv[1:] else write_table())
