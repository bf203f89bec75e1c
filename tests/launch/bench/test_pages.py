"""The documentation shows the records that lie beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch import main as command
from sglang_ascend_moe.launch.bench.pages import PAPER, fill_page, filled, paper_comparison
from sglang_ascend_moe.launch.bench.records import write_records
from sglang_ascend_moe.launch.bench.serving_plot import LATER_TOKENS
from sglang_ascend_moe.launch.bench.serving_records import read_serving_records, summary
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE
from tests.packaging.source_tree import ROOT

from .shapes import case, records

PAGE = ROOT / "docs/benchmarks.md"


def test_the_page_shows_its_records():
    text = PAGE.read_text()
    assert filled(text, PAGE.parent) == text


def test_the_page_shows_pictures_of_its_records():
    for name in ("decode-2", "decode-4", "prefill-2", "serving", "drafts"):
        assert f"(benchmarks/{name}.svg)" in PAGE.read_text()
        assert (PAGE.parent / f"benchmarks/{name}.svg").is_file()


def test_the_page_begins_with_the_time_per_token_of_its_servers():
    records = read_serving_records(PAGE.parent / "benchmarks/serving.json")
    stock, ours = (summary(records, variant, LATER_TOKENS).median for variant in ("stock", "relay-free"))
    assert f"({stock:.1f} against {ours:.1f} ms per token)" in PAGE.read_text().split("\n## ")[0]
    assert stock < ours


def test_a_page_is_filled_again_and_keeps_what_is_around(tmp_path: Path):
    write_records(tmp_path / "run.json", records({"relay-free": (10, 20), "relay": (40, 60)}))
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- ratios run.json -->\nold\n<!-- end -->\n\nafter\n\n<!-- memory -->\n<!-- end -->\n")
    assert [path.name for path in fill_page(page)] == ["page.md", "run.svg"]
    text = page.read_text()
    assert text.startswith("before\n\n<!-- ratios run.json -->\n| time / relay-free | relay |\n")
    assert "| dispatch | 4.00 |" in text
    assert "old" not in text
    assert "\n<!-- end -->\n\nafter\n" in text
    assert "| DeepSeek-V3 | 128 |" in text
    fill_page(page)
    assert page.read_text() == text


@pytest.mark.parametrize("block", ["<!-- rations run.json -->", "<!-- ratios -->"], ids=["unknown kind", "no file"])
def test_a_block_that_cannot_be_filled_is_named(tmp_path: Path, block: str):
    with pytest.raises(InvalidInput, match=block):
        filled(f"{block}\n<!-- end -->\n", tmp_path)


def test_a_page_without_its_records_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text("<!-- ratios run.json -->\n<!-- end -->\n")
    assert command.main(["bench", "page", str(page)]) == WRONG_USAGE
    assert "run.json" in capsys.readouterr().err
    page.write_text("nothing to fill\n")
    assert command.main(["bench", "page", str(page)]) == OK


def test_gains_of_the_paper_are_those_that_it_states():
    gains = [round(100 * (1 - row.relay_free / row.baseline), 1) for row in PAPER]
    # It averages the gains of the batches, which is not quite the gain of the average times.
    assert gains == pytest.approx([20.2, 31.0, 14.8, 27.7, 22.8, 24.5, 22.4, 24.3], abs=2.5)


def test_ratios_beside_the_paper_are_means_over_the_tokens_of_a_row():
    run = [
        *records({"relay-free": (10, 10), "relay": (20, 40)}, case(hidden=4096, tokens=16)),
        *records({"relay-free": (10, 10), "relay": (80, 90)}, case(hidden=4096, tokens=48)),
    ]
    table = paper_comparison(run)
    assert "| dispatch | 4096 | bf16 | 1.29 | 4.00 | - |" in table
    assert "| combine | 4096 | bf16 | 1.30 | 6.00 | - |" in table
    assert "| dispatch | 7168 | int8 | 1.41 | - | - |" in table
