"""`ascend-moe bench serving`: its flags, what it makes of rounds, and one real run."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.bench.serving_command import VARIANTS
from sglang_ascend_moe.launch.bench.serving_plot import draw_serving, serving_headline
from sglang_ascend_moe.launch.bench.serving_records import (
    MEASURES,
    ServingRecord,
    Summary,
    read_serving_records,
    rows_of,
    summary,
    text_table,
    write_serving_records,
)

BENCH = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "bench", "serving"]


def record(variant: str, number: int, ttft: float) -> ServingRecord:
    return ServingRecord(
        variant=variant, round=number, requests=8, completed=8, concurrency=2, input_tokens=16, output_tokens=4,
        median_ttft_ms=ttft, p99_ttft_ms=2 * ttft, median_tpot_ms=3.0, p99_tpot_ms=4.0, output_tokens_per_s=100.0,
    )  # fmt: skip


RECORDS = [record("relay-free", 1, 10.0), record("relay-free", 2, 30.0), record("relay-free", 3, 20.0),
           record("stock", 1, 40.0)]  # fmt: skip


def test_a_variant_is_shown_by_the_median_of_its_rounds_and_their_range():
    assert summary(RECORDS, "relay-free", MEASURES[0]) == Summary(20.0, 10.0, 30.0)
    assert [row[:2] for row in rows_of(RECORDS)] == [
        ["relay-free", "20.0 (10.0 .. 30.0)"],
        ["stock", "40.0 (40.0 .. 40.0)"],
    ]


def test_the_table_has_a_line_per_variant_below_its_titles():
    lines = text_table(RECORDS).splitlines()
    assert [line.split()[0] for line in lines] == ["TTFT", "relay-free", "stock"]
    assert len(set(map(len, lines))) == 1


def test_tokens_per_step_are_those_of_drafts_and_else_one():
    drafts = msgspec.structs.replace(record("drafts", 1, 10.0), tokens_per_step=2.25)
    titles = [measure.title for measure in MEASURES]
    column = 1 + titles.index("tokens per step")
    assert [row[column] for row in rows_of([*RECORDS, drafts])] == [
        "1.00 (1.00 .. 1.00)",
        "1.00 (1.00 .. 1.00)",
        "2.25 (2.25 .. 2.25)",
    ]


def test_records_are_read_as_they_were_written(tmp_path: Path):
    write_serving_records(tmp_path / "records.json", RECORDS)
    assert read_serving_records(tmp_path / "records.json") == RECORDS


@pytest.mark.parametrize(
    "content", [pytest.param(b"[]", id="no-record"), pytest.param(b'[{"variant": 1}]', id="something-else")]
)
def test_a_file_without_records_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "records.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"records\.json"):
        read_serving_records(tmp_path / "records.json")


def test_a_picture_can_be_drawn_of_one_round_and_of_several(tmp_path: Path):
    draw_serving(RECORDS, tmp_path / "several.svg")
    draw_serving(RECORDS[-1:], tmp_path / "one.svg")
    assert (tmp_path / "several.svg").read_text() != (tmp_path / "one.svg").read_text()


def test_the_headline_says_how_a_server_compares_with_stock():
    assert serving_headline(RECORDS) == (
        "Beside stock SGLang on one rank: 0.50 of its time to the first token, 1.00 to each later one"
    )
    assert serving_headline(RECORDS[:3]) == "Serving on one host"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--against", "relay"], "--against relay", id="variant"),
        pytest.param(["--rounds", "0"], "--rounds 0", id="rounds"),
        pytest.param(["--url", "http://127.0.0.1:1"], "--model-path", id="url-without-tokenizer"),
        pytest.param(["--json", "/nowhere/x.json"], "--json /nowhere/x.json", id="json"),
        pytest.param(["--against", "drafts", "--model-path", "x"], "--against drafts with --model-path", id="drafts"),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], message: str):
    finished = subprocess.run([*BENCH, *flags], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2
    assert message in finished.stderr


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_variant_is_served_and_asked(tmp_path: Path):
    records = tmp_path / "records.json"
    few = ["--rounds", "1", "--requests", "2", "--concurrency", "2", "--input-tokens", "16", "--output-tokens", "4"]
    few += ["--against", ",".join(VARIANTS)]
    finished = subprocess.run([*BENCH, *few, "--json", str(records)], capture_output=True, text=True, timeout=850)
    assert finished.returncode == 0, finished.stderr
    found = msgspec.json.decode(records.read_bytes(), type=list[ServingRecord])
    assert [item.variant for item in found] == list(VARIANTS)
    assert all(item.completed == 2 and item.median_ttft_ms > 0 and item.median_tpot_ms > 0 for item in found)
    assert [item.variant for item in found if item.tokens_per_step > 1] == ["drafts"]
