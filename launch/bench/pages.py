"""Fills the tables of a Markdown page from the records of runs, and draws their pictures beside them.

A block of the page is `<!-- KIND FILE -->`, what was filled in before, and `<!-- end -->`; FILE lies relative to the
page. See BLOCKS for the kinds. `<!-- serving FILE -->` takes what `ascend-moe bench serving` wrote; `<!-- memory -->`,
without a file, is the table of `ascend-moe plan compare`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.bench.plot import draw
from sglang_ascend_moe.launch.bench.records import Op, Record, cases_of, read_records
from sglang_ascend_moe.launch.bench.serving_plot import LATER_TOKENS, SHOWN_MEASURES, TOKENS_PER_STEP, draw_serving
from sglang_ascend_moe.launch.bench.serving_records import ServingRecord, read_serving_records, rows_of
from sglang_ascend_moe.launch.bench.statistics import geometric_mean
from sglang_ascend_moe.launch.bench.tables import (
    absences,
    believed_ratio,
    doubts,
    markdown_extremes,
    markdown_ratios,
    markdown_table,
)
from sglang_ascend_moe.launch.plan.plan_command import comparison

_BLOCK = re.compile(r"(<!-- (?P<kind>[a-z]+)(?: (?P<file>[^\s>]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


MEMORY = "memory"
SERVING = "serving"
SHOWN_VARIANTS = ("relay-free", "relay", "memcpy")
"""The variants whose times a page states: this package's, the relay buffer, the bound. Of the others it has ratios."""
NUMBERS_OF_RANKS = (8, 128)
"""Those whose memory a page compares."""


class PaperRow(NamedTuple):
    """A row of the paper's decode table, microseconds on Ascend A3."""

    op: Op
    hidden: int
    dtype: str
    baseline: float
    relay_free: float


PAPER = (
    PaperRow("dispatch", 4096, "bf16", 94.95, 73.81),
    PaperRow("dispatch", 4096, "int8", 88.62, 59.46),
    PaperRow("dispatch", 7168, "bf16", 124.73, 104.48),
    PaperRow("dispatch", 7168, "int8", 101.06, 71.48),
    PaperRow("combine", 4096, "bf16", 59.88, 46.03),
    PaperRow("combine", 4096, "int8", 61.88, 46.02),
    PaperRow("combine", 7168, "bf16", 89.76, 70.23),
    PaperRow("combine", 7168, "int8", 91.41, 69.80),
)


def fill_page(page: Path) -> list[Path]:
    """Writes the page anew and draws a picture for every file of records that it names; returns what was written.

    Raises `InvalidInput` for a block of unknown kind or a file that holds no records; `OSError`.
    """
    text = page.read_text()
    written = [page]
    page.write_text(filled(text, page.parent))
    files = {match["file"]: match["kind"] for match in _BLOCK.finditer(text) if match["file"]}
    for name, kind in files.items():
        records, picture = page.parent / name, (page.parent / name).with_suffix(".svg")
        if kind == SERVING:
            draw_serving(read_serving_records(records), picture)
        else:
            draw(read_records(records), picture)
        written.append(picture)
    return written


def filled(text: str, folder: Path) -> str:
    """`text` with what belongs into its blocks; files are looked for in `folder`."""

    def fill(match: re.Match[str]) -> str:
        kind, file = match["kind"], match["file"]
        if kind == MEMORY and file is None:
            return f"{match[1]}{comparison(numbers_of_ranks=NUMBERS_OF_RANKS)}\n{match[4]}"
        if kind == SERVING and file is not None:
            return f"{match[1]}{_servers(read_serving_records(folder / file))}\n{match[4]}"
        if kind not in BLOCKS or file is None:
            kinds = ", ".join((SERVING, *BLOCKS))
            raise InvalidInput(f"{match[1].strip()} is not {MEMORY}, nor one of {kinds} with a file")
        return f"{match[1]}{BLOCKS[kind](read_records(folder / file))}\n{match[4]}"

    return _BLOCK.sub(fill, text)


def _servers(records: list[ServingRecord]) -> str:
    drafts = any(record.tokens_per_step != 1 for record in records)
    measures = (LATER_TOKENS, TOKENS_PER_STEP) if drafts else SHOWN_MEASURES
    return markdown_table(["", *(measure.title for measure in measures)], rows_of(records, measures))


def _ratios(records: list[Record]) -> str:
    missing = "".join(f"\n\nNot measured: {text}." for text in absences(records))
    return f"{markdown_ratios(records)}{missing}" + "".join(f"\n\n{text}." for text in doubts(records))


def _run(records: list[Record]) -> str:
    """The numbers of iterations, so that nobody has to guess how much a median means."""
    iterations = sorted({record.iterations for record in records if record.absent is None})
    one = cases_of(records)[0]
    return (
        f"{len(cases_of(records))} cases, {iterations[0]} to {iterations[-1]} iterations each, {one.ranks} ranks, "
        f"top {one.topk} of {one.experts} experts, seed {one.seed}."
    )


def _times(records: list[Record]) -> str:
    return f"Medians in µs:\n\n{markdown_extremes(records, SHOWN_VARIANTS)}"


def paper_comparison(records: list[Record]) -> str:
    """The paper's gain over its baseline beside ours over the relay buffer, both as baseline / relay-free."""
    rows = [
        [
            row.op, row.hidden, row.dtype, f"{row.baseline / row.relay_free:.2f}",
            *(_mean_ratio(records, row, variant) for variant in ("relay", "relay-direct")),
        ]
        for row in PAPER
    ]  # fmt: skip
    return markdown_table(["", "hidden", "dtype", "paper: baseline", "here: relay", "here: relay-direct"], rows)


def _mean_ratio(records: list[Record], row: PaperRow, variant: str) -> str:
    values = [
        value
        for case in cases_of(records)
        if (case.hidden, case.dtype) == (row.hidden, row.dtype)
        and (value := believed_ratio(records, case, row.op, variant)) is not None
    ]
    return f"{geometric_mean(values):.2f}" if values else "-"


BLOCKS: dict[str, Callable[[list[Record]], str]] = {
    "run": _run,
    "ratios": _ratios,
    "times": _times,
    "paper": paper_comparison,
}
"""What can be filled in, by kind."""
