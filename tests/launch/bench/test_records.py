"""Records say what was measured, survive the way through a file, and never drop a variant silently."""

import re
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.bench.records import Record, cases_of, find, judged, read_records, write_records
from sglang_ascend_moe.launch.bench.tables import (
    absences,
    markdown_extremes,
    markdown_ratios,
    markdown_times,
    ratios,
    text_report,
)
from tests.packaging.source_tree import ROOT

from .shapes import SMALL, absent, case, records

LONGER = case(tokens=14)
RUN = [
    *records({"relay-free": (10, 20), "relay": (40, 60)}),
    *absent("mpi", "mpirun was not found"),
    *records({"relay-free": (10, 20), "relay": (90, 60)}, LONGER),
    *records({"mpi": (30, 30)}, LONGER),
]


def test_records_come_back_from_a_file_as_they_were(tmp_path: Path):
    write_records(tmp_path / "run.json", RUN)
    assert read_records(tmp_path / "run.json") == RUN


@pytest.mark.parametrize(
    "text",
    ["[", "{}", '[{"op": "dispatch"}]', '[{"op": "fetch"}]'],
    ids=["not json", "no list", "fields missing", "unknown op"],
)
def test_a_file_that_is_no_run_is_refused_by_its_name(tmp_path: Path, text: str):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"run\.json"):
        read_records(path)


def test_a_record_has_either_times_or_a_reason():
    (record, _) = absent("mpi", "no mpirun")
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    with pytest.raises(ValueError, match="either times or a reason"):
        type(record)(**values | {"absent": None})
    with pytest.raises(ValueError, match="either times or a reason"):
        type(record)(**values | {"median_us": 1.0})


def test_cases_are_found_in_the_order_of_the_run():
    assert cases_of(RUN) == [SMALL, LONGER]
    assert find(RUN, LONGER, "dispatch", "mpi").median_us == 30
    assert find(RUN, LONGER, "dispatch", "memcpy") is None


def test_ratios_are_geometric_means_over_the_cases_that_both_have():
    found = {(mean.op, mean.variant): (mean.ratio, mean.cases) for mean in ratios(RUN)}
    assert found == {
        ("dispatch", "relay"): (pytest.approx(6), 2),
        ("combine", "relay"): (pytest.approx(3), 2),
        ("dispatch", "mpi"): (pytest.approx(3), 1),
        ("combine", "mpi"): (pytest.approx(1.5), 1),
    }


def test_what_was_not_measured_is_said_with_its_reason():
    assert absences(RUN) == ["mpi in 1 of 2 cases: mpirun was not found"]
    assert "not measured: mpi in 1 of 2 cases: mpirun was not found" in text_report(RUN)


def test_text_report_shows_every_median_and_ratio():
    report = text_report(RUN)
    for shown in ("40.0", "4.00x", "90.0", "9.00x", "6.00x", "3.00x"):
        assert shown in report


def doubtful(of: list[Record], *variants: str) -> list[Record]:
    """The records with those of some variants marked."""
    return [msgspec.structs.replace(record, doubtful=record.variant in variants) for record in of]


BUSY = [
    *doubtful(records({"relay-free": (10, 20), "relay": (400, 600), "mpi": (90, 90)}), "relay", "mpi"),
    *doubtful(records({"relay-free": (10, 20), "relay": (90, 60), "mpi": (90, 90)}, LONGER), "mpi"),
]


def test_records_keep_their_mark_and_those_of_before_have_none(tmp_path: Path):
    write_records(tmp_path / "run.json", BUSY)
    assert read_records(tmp_path / "run.json") == BUSY
    text = (tmp_path / "run.json").read_text()
    without = re.sub(r',\s*"doubtful": (true|false)', "", text)
    assert "doubtful" not in without
    (tmp_path / "old.json").write_text(without)
    assert read_records(tmp_path / "old.json") == doubtful(BUSY)


@pytest.mark.parametrize("name", ["decode-2", "decode-4", "prefill-2"])
def test_the_records_of_the_documentation_are_read(name: str):
    assert read_records(ROOT / "docs" / "benchmarks" / f"{name}.json")


def test_a_case_most_of_whose_numbers_are_doubtful_is_doubtful_as_a_whole():
    three = records({"relay-free": (10, 20), "relay": (40, 60), "mpi": (90, 90)})
    gone = absent("memcpy", "no room")
    for variants, whole in (((), False), (("relay",), False), (("relay", "mpi"), True)):
        found = judged(doubtful([*three, *gone], *variants))
        assert found == doubtful([*three, *gone], *(("relay-free", "relay", "mpi") if whole else variants))


def test_means_leave_doubtful_cases_out_and_say_so():
    found = {(mean.op, mean.variant): mean for mean in ratios(BUSY)}
    assert set(found) == {("dispatch", "relay"), ("combine", "relay")}
    assert found["dispatch", "relay"] == ("dispatch", "relay", pytest.approx(9), 1, 1)
    report = text_report(BUSY)
    assert "relay             dispatch   9.00x over 1 of 2 cases   combine   3.00x over 1 of 2 cases" in report
    assert "mpi               dispatch      ? in every case   combine      ? in every case" in report


def test_doubtful_numbers_are_marked_and_explained_once():
    report = text_report(BUSY)
    assert [mark in report for mark in ("400.0?", "40.00x?", "90.0?", " 10.0 ", "9.00x ")] == [True] * 5
    assert report.count("6 of 12 numbers vary too much to be believed, as they do on a busy machine") == 1
    assert "Stop other programs" in report
    assert "400?" in markdown_times(BUSY)
    assert "believed" not in text_report(doubtful(BUSY))


def test_the_table_says_its_units():
    head = next(line for line in text_report(RUN).splitlines() if "p10" in line)
    assert [head.count(part) for part in ("dispatch, µs", "combine, µs", "p10 .. p90, µs")] == [1, 1, 2]


def test_markdown_shows_a_variant_that_is_absent_as_a_gap():
    assert "| 48 | bf16 | 7 | 10 | 40 | - |" in markdown_times(RUN)
    assert "| dispatch | 6.00 | 3.00 |" in markdown_ratios(RUN)


def test_a_short_table_has_the_fewest_and_the_most_tokens_of_each_shape():
    run = [
        record
        for dtype, factor in (("bf16", 1), ("int8", 2))
        for tokens in (48, 16, 144)
        for record in records(
            {"relay-free": (factor * tokens, 1), "mpi": (7, 7), "relay": (5, 6)}, case(tokens=tokens, dtype=dtype)
        )
    ]
    assert markdown_extremes(run, ("relay-free", "relay")).splitlines() == [
        "| hidden | dtype | tokens | dispatch relay-free | dispatch relay | combine relay-free | combine relay |",
        "|---|---|---|---|---|---|---|",
        "| 48 | bf16 | 16 | 16 | 5 | 1 | 6 |",
        "| 48 | bf16 | 144 | 144 | 5 | 1 | 6 |",
        "| 48 | int8 | 16 | 32 | 5 | 1 | 6 |",
        "| 48 | int8 | 144 | 288 | 5 | 1 | 6 |",
    ]


def test_a_shape_of_one_case_has_one_row_in_the_short_table():
    assert len(markdown_extremes(records({"relay-free": (10, 20)}), ("relay-free",)).splitlines()) == 3
