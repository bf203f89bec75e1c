"""Tables of a run: as text for the terminal, as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.records import OPS, Op, Record, cases_of, find, variants_of
from sglang_ascend_moe.launch.bench.statistics import WIDEST, geometric_mean

OURS = "relay-free"
BOUND = "memcpy"


DOUBTFUL = "?"
"""Stands behind a number that is not to be believed."""


class Ratio(NamedTuple):
    """Time of `variant` over that of relay-free, geometric mean over `cases` cases; of `left_out` it is doubtful."""

    op: Op
    variant: str
    ratio: float
    cases: int
    left_out: int = 0


def ratio(records: list[Record], case: Case, op: Op, variant: str) -> float | None:
    """Median of `variant` over that of relay-free, None where one of them was not measured."""
    theirs, ours = find(records, case, op, variant), find(records, case, op, OURS)
    if theirs is None or ours is None or theirs.median_us is None or ours.median_us is None:
        return None
    return theirs.median_us / ours.median_us


def is_doubtful(records: list[Record], case: Case, op: Op, variant: str) -> bool:
    """Whether the ratio is, because one of its times is."""
    both = (find(records, case, op, variant), find(records, case, op, OURS))
    return any(record is not None and record.doubtful for record in both)


def believed_ratio(records: list[Record], case: Case, op: Op, variant: str) -> float | None:
    """As `ratio`, None also where it is doubtful."""
    return None if is_doubtful(records, case, op, variant) else ratio(records, case, op, variant)


def ratios(records: list[Record]) -> list[Ratio]:
    """Of every other variant and each operation, over the cases in which both were measured, beyond doubt."""
    found = []
    for variant in variants_of(records):
        for op in OPS:
            measured = [case for case in cases_of(records) if ratio(records, case, op, variant) is not None]
            values = [value for case in measured if (value := believed_ratio(records, case, op, variant)) is not None]
            if variant != OURS and values:
                left_out = len(measured) - len(values)
                found.append(Ratio(op, variant, geometric_mean(values), len(values), left_out))
    return found


def text_report(records: list[Record]) -> str:
    """Everything that was measured, ratios at the end."""
    lines: list[str] = []
    for case in cases_of(records):
        heads = (f"{f'{op}, µs':>13}{'p10 .. p90, µs':>24}{f'/ {OURS}':>14}" for op in OPS)
        lines += [case.text(), f"  {'':<18}{''.join(heads)}"]
        for variant in variants_of(records):
            lines.append(f"  {variant:<18}" + "".join(_text_cell(records, case, op, variant) for op in OPS))
        lines.append("")
    means = {variant: _text_means(records, variant) for variant in variants_of(records) if variant != OURS}
    if any(means.values()):
        lines.append(f"time over that of {OURS} (geometric mean over the cases)")
        lines += [f"  {variant:<18}{text}" for variant, text in means.items() if text]
        lines.append("")
    lines += [f"not measured: {text}" for text in absences(records)]
    lines += doubts(records)
    lines.append("microseconds until the last rank has ended; every variant's result was compared before it was timed")
    return "\n".join(lines)


def _text_cell(records: list[Record], case: Case, op: Op, variant: str) -> str:
    record = find(records, case, op, variant)
    if record is None or record.median_us is None:
        return f"{'not measured':>13}{'':>38}"
    median = f"{record.median_us:,.1f}{DOUBTFUL if record.doubtful else ''}"
    value = ratio(records, case, op, variant)
    mark = DOUBTFUL if is_doubtful(records, case, op, variant) else ""
    times = "" if value is None else f"{value:.2f}x{mark}"
    return f"{median:>13}{f'{record.p10_us:,.1f} .. {record.p90_us:,.1f}':>24}{times:>14}"


def _text_means(records: list[Record], variant: str) -> str:
    """Of both operations; empty if none was measured together with relay-free."""
    texts = []
    for op in OPS:
        mean = next((mean for mean in ratios(records) if (mean.op, mean.variant) == (op, variant)), None)
        if mean is not None:
            over = f" over {mean.cases} of {mean.cases + mean.left_out} cases" if mean.left_out else ""
            texts.append(f"{op} {mean.ratio:6.2f}x{over}")
        elif any(ratio(records, case, op, variant) is not None for case in cases_of(records)):
            texts.append(f"{op} {DOUBTFUL:>6} in every case")
    return "   ".join(texts)


def doubts(records: list[Record]) -> list[str]:
    """What to know of doubtful numbers, in one line; nothing if there are none."""
    measured = [record for record in records if record.absent is None]
    doubtful = sum(record.doubtful for record in measured)
    if not doubtful:
        return []
    return [
        f"{DOUBTFUL}: {doubtful} of {len(measured)} numbers vary too much to be believed, as they do on a busy machine:"
        f" their p90 is more than {WIDEST} times their p10, or that of most numbers of their case is. Means leave them"
        " out. Stop other programs, use no more --ranks than cores, and measure again"
    ]


def absences(records: list[Record]) -> list[str]:
    """Which variants were not measured and why, each once with the number of cases."""
    reasons: dict[tuple[str, str], set[Case]] = {}
    for record in records:
        if record.absent is not None:
            reasons.setdefault((record.variant, record.absent), set()).add(record.case)
    everything = len(cases_of(records))
    return [
        f"{variant}" + (f" in {len(cases)} of {everything} cases" if len(cases) < everything else "") + f": {reason}"
        for (variant, reason), cases in reasons.items()
    ]


def markdown_times(records: list[Record]) -> str:
    """Medians in microseconds, one table per operation."""
    variants = variants_of(records)
    blocks = []
    for op in OPS:
        rows = [
            [case.hidden, case.dtype, f"{case.tokens:,}", *(_median(records, case, op, name) for name in variants)]
            for case in cases_of(records)
        ]
        blocks.append(f"**{op}**, µs\n\n" + markdown_table(["hidden", "dtype", "tokens", *variants], rows))
    return "\n\n".join(blocks)


def markdown_ratios(records: list[Record]) -> str:
    """Geometric means of time over that of relay-free."""
    means = {(mean.op, mean.variant): mean.ratio for mean in ratios(records)}
    names = [name for name in variants_of(records) if any(variant == name for _, variant in means)]
    rows = [[op, *(f"{means[op, name]:.2f}" if (op, name) in means else "" for name in names)] for op in OPS]
    return markdown_table([f"time / {OURS}", *names], rows)


def markdown_extremes(records: list[Record], variants: Collection[str]) -> str:
    """Medians of `variants` in microseconds, for the fewest and the most tokens of each shape."""
    shapes: dict[Case, list[Case]] = {}
    for case in sorted(cases_of(records), key=lambda case: case.tokens):
        shapes.setdefault(msgspec.structs.replace(case, tokens=0), []).append(case)
    columns = [(op, name) for op in OPS for name in variants_of(records) if name in variants]
    rows = [
        [case.hidden, case.dtype, f"{case.tokens:,}", *(_median(records, case, op, name) for op, name in columns)]
        for cases in shapes.values()
        for case in dict.fromkeys((cases[0], cases[-1]))
    ]
    return markdown_table(["hidden", "dtype", "tokens", *(f"{op} {name}" for op, name in columns)], rows)


def _median(records: list[Record], case: Case, op: Op, variant: str) -> str:
    record = find(records, case, op, variant)
    if record is None or record.median_us is None:
        return "-"
    return f"{record.median_us:,.0f}{DOUBTFUL if record.doubtful else ''}"


def markdown_table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in (head, *rows)]
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|" + "---|" * columns, *lines[1:]])
