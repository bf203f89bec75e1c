"""`ascend-moe bench` as it is typed: what it writes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from sglang_ascend_moe.launch import main as command
from sglang_ascend_moe.launch.bench import rank_processes
from sglang_ascend_moe.launch.bench.bench_command import _parser, settings_of
from sglang_ascend_moe.launch.bench.cases import PRESETS, VARIANTS, problem_with
from sglang_ascend_moe.launch.bench.records import write_records
from sglang_ascend_moe.launch.bench.rounds import RoundsRecord, rounds_report
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE
from tests.packaging.source_tree import ROOT

from .shapes import case, records

TINY = ["--hidden", "64", "--tokens", "6", "--experts", "8", "--topk", "3", "--iters", "3"]
RECORDS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": [
            "op", "phase", "ranks", "hidden", "tokens", "topk", "experts", "dtype", "routing", "variant", "median_us",
            "p10_us", "p90_us", "iterations", "checked", "doubtful",
        ],
        "properties": {
            "op": {"enum": ["dispatch", "combine"]},
            "phase": {"enum": ["decode", "prefill"]},
            "dtype": {"enum": ["bf16", "int8"]},
            "routing": {"enum": ["uniform", "zipf", "one-expert"]},
            "variant": {"enum": list(VARIANTS)},
            **{name: {"type": "integer", "minimum": 1} for name in ("ranks", "hidden", "tokens", "topk", "experts")},
            "doubtful": {"type": "boolean"},
        },
        "if": {"properties": {"absent": {"type": "null"}}},
        "then": {
            "properties": {
                **{name: {"type": "number", "exclusiveMinimum": 0} for name in ("median_us", "p10_us", "p90_us")},
                "iterations": {"type": "integer", "minimum": 1},
                "checked": {"const": True},
            }
        },
        "else": {
            "properties": {
                **{name: {"type": "null"} for name in ("median_us", "p10_us", "p90_us")},
                "absent": {"type": "string", "minLength": 1},
                "iterations": {"const": 0},
                "checked": {"const": False},
                "doubtful": {"const": False},
            }
        },
    },
}  # fmt: skip


def bench(*arguments: str) -> int:
    return command.main(["bench", "exchange", *arguments])


def read(path: Path) -> list[dict]:
    """The records of a run, after comparing them with the schema."""
    records = json.loads(path.read_text())
    jsonschema.validate(records, RECORDS)
    return records


def test_every_variant_is_measured_in_one_run_and_recorded(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path, plot = tmp_path / "run.json", tmp_path / "run.svg"
    assert bench("--preset", "quick", *TINY, "--dtype", "bf16,int8", "--json", str(path), "--plot", str(plot)) == OK
    found = read(path)
    assert {(record["dtype"], record["op"], record["variant"]) for record in found} == {
        (dtype, op, variant) for dtype in ("bf16", "int8") for op in ("dispatch", "combine") for variant in VARIANTS
    }
    measured = [record for record in found if record["absent"] is None]
    assert {(record["dtype"], record["variant"]) for record in found if record["absent"] is not None} == {
        ("bf16", "quantise-memcpy")
    }
    assert {record["iterations"] for record in measured} == {3}
    assert {(record["op"], record["dtype"], record["payload_bytes"]) for record in measured} == {
        ("dispatch", "bf16", 18 * 128), ("combine", "bf16", 18 * 128),
        ("dispatch", "int8", 18 * 68), ("combine", "int8", 18 * 128),
    }  # fmt: skip
    report = capfd.readouterr().out
    assert [name for name in VARIANTS if name not in report] == []
    assert plot.stat().st_size > 0


@pytest.mark.parametrize("dtype", [pytest.param("bf16", marks=pytest.mark.nightly), "int8"])
def test_a_layer_is_measured_in_as_many_rounds_as_asked(dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = tmp_path / "rounds.json"
    shape = [*TINY, "--dtype", dtype, "--tokens", "512", "--routing", "zipf"]
    assert bench(*shape, "--rounds", "4,2", "--json", str(path)) == OK
    records = msgspec.json.decode(path.read_bytes(), type=list[RoundsRecord])
    assert [record.rounds for record in records] == [1, 2, 4]
    assert {(record.case.phase, record.case.tokens, record.iterations) for record in records} == {("prefill", 512, 3)}
    windows = [record.window_bytes for record in records]
    assert windows == sorted(set(windows), reverse=True)
    assert all(0 < record.p10_us <= record.median_us <= record.p90_us for record in records)
    assert rounds_report(records) in capfd.readouterr().out


@pytest.mark.nightly
def test_rounds_that_no_window_makes_are_refused(capfd: pytest.CaptureFixture[str]):
    assert bench(*TINY, "--rounds", "7") == CHECK_FAILED
    assert "no window makes 6 tokens take 7 rounds; raise --tokens" in capfd.readouterr().err


def test_without_mpirun_mpi_is_said_to_be_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "run.json"
    assert bench(*TINY, "--ranks", "1", "--against", "relay-free,mpi", "--json", str(path)) == OK
    by_variant = {record["variant"]: record for record in read(path)}
    assert by_variant["relay-free"]["checked"] is True
    assert "mpirun was not found" in by_variant["mpi"]["absent"]
    assert "not measured: mpi: mpirun was not found" in capfd.readouterr().out


def test_a_wrong_row_ends_the_run_with_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(rank_processes, "RANK_MODULE", "tests.launch.bench.corrupt_rank")
    monkeypatch.chdir(ROOT)
    path = tmp_path / "run.json"
    assert bench(*TINY, "--against", "relay-free,memcpy", "--json", str(path)) == CHECK_FAILED
    assert not path.exists()
    captured = capfd.readouterr()
    assert "check failed: relay-free: " in captured.err
    assert "row 0 of rank 1 is not the token that belongs there" in captured.err
    assert captured.out == ""


def test_cases_for_which_no_time_is_left_are_said_to_be_absent():
    outcome = rank_processes.run_ranks([case(ranks=1)], ["relay-free"], 3, case_seconds=1, total_seconds=0)
    assert outcome.exit_code == OK
    assert {record.absent for record in outcome.records} == {"the 0 s of the run were over"}


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--token", "5", "--frobnicate"], "--frobnicate"),
        (["--against", "relay-free,carrier-pigeon"], "--against"),
        (["--dtype", "fp4"], "--dtype"),
        (["--routing", "random"], "--routing"),
        (["--phase", "training"], "--phase"),
        (["--preset", "paper"], "--preset"),
        (["--hidden", "4096,100.5"], "--hidden"),
        (["--hidden", "100"], "--hidden"),
        (["--ranks", "0"], "--ranks"),
        (["--ranks", "3"], "--experts"),
        (["--topk", "65"], "--topk"),
        (["--iters", "0"], "--iters"),
        (["--seed", "-1"], "--seed"),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "2", "--against", "relay"], "--against"),
        (["--rounds", "2", "--phase", "decode"], "--phase"),
        (["--rounds", "2", "--plot", "rounds.svg"], "--plot"),
        (["--json", "no/such/folder/run.json"], "--json"),
        (["--plot", "run.gif"], "--plot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_named_and_ends_with_exit_code_2(
    arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
):
    try:
        code = bench(*arguments)
    except SystemExit as ended:  # how argparse refuses
        code = ended.code
    assert code == WRONG_USAGE
    assert flag in capsys.readouterr().err


def parse(*arguments: str):
    return settings_of(_parser().parse_args(["exchange", *arguments]))


def test_presets_are_the_tables_of_the_paper():
    decode, prefill = parse("--preset", "paper-decode"), parse("--preset", "paper-prefill")
    assert {(case.hidden, case.dtype, case.tokens) for case in decode.cases} == {
        (hidden, dtype, tokens) for hidden in (4096, 7168) for dtype in ("bf16", "int8") for tokens in (16, 48, 96, 144)
    }
    assert [case.tokens for case in prefill.cases] == [1024, 2048, 4096, 8192, 16384]
    assert {case.phase for case in decode.cases} == {"decode"}
    assert {case.phase for case in prefill.cases} == {"prefill"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_possible_and_ends_within_ten_minutes(preset: str):
    settings = parse("--preset", preset)
    assert [problem_with(case) for case in settings.cases if problem_with(case)] == []
    # With a minute for starting the ranks, and for the case that is under way when time is over.
    assert settings.total_seconds + 60 <= 600


def test_a_flag_wins_over_the_preset():
    settings = parse("--preset", "paper-decode", "--tokens", "5", "--dtype", "int8", "--iters", "7")
    assert [(case.hidden, case.dtype, case.tokens) for case in settings.cases] == [(4096, "int8", 5), (7168, "int8", 5)]
    assert settings.iterations == 7


def test_variants_are_measured_in_the_order_of_the_table():
    assert parse("--against", "memcpy,relay-free").variants == ["relay-free", "memcpy"]


def test_a_report_shows_a_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.json"
    write_records(path, records({"relay-free": (10, 20), "relay": (40, 60)}))
    assert command.main(["bench", "report", str(path)]) == OK
    assert "4.00x" in capsys.readouterr().out
    assert command.main(["bench", "report", str(path), "--markdown"]) == OK
    assert "| dispatch | 4.00 |" in capsys.readouterr().out


def test_a_report_of_no_run_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["bench", "report", str(tmp_path / "run.json")]) == WRONG_USAGE
    assert "run.json" in capsys.readouterr().err
