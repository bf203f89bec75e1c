"""The examples that start no server say what they promise.

Those whose command the tests of README type as well are nightly.
"""

from pathlib import Path

import pytest

from tests.examples.conftest import Run, example

TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2")


def test_exchange(run: Run):
    said = run(*TORCHRUN, example("exchange.py"))
    assert said.count("results are those of a loop over the tokens, bit for bit") == 2


def test_deep_ep_buffer(run: Run):
    said = run(*TORCHRUN, example("deep_ep_buffer.py"))
    assert [said.count(f"{mode}: 16 tokens came back") for mode in ("low latency", "normal")] == [2, 2]


def test_plan(run: Run, model: str):
    said = run(example("plan.sh"), model)
    assert [line.split()[-1] for line in said.splitlines() if ", top 4, rows of " in line] == ["bfloat16", "int8"]


@pytest.mark.nightly
def test_bench(run: Run, tmp_path: Path):
    said = run(example("bench.sh"), "records.json")
    assert "relay-free" in said
    assert "records.json holds the records" in said
    assert (tmp_path / "records.json").stat().st_size > 0


@pytest.mark.nightly
def test_doctor(run: Run):
    said = run(example("doctor.sh")).splitlines()
    assert said[0].startswith("--ascend-moe works here: backend host")
    assert said[-1] == "exit code 0: start a server"
