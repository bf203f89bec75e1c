"""The records of `ascend-moe bench serving`, their summary and table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.bench.output_files import write_json


class ServingRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round of one variant, as SGLang's benchmark saw it. Times in milliseconds.

    ttft: from a request to its first token. tpot: between later tokens, mean of each request. Median and 99th
    percentile are over the requests of the round. output_tokens_per_s: of all requests together. tokens_per_step: that
    a decode step gives a request, SGLang's accept length; 1 without drafts.
    """

    op: str = "serving"
    variant: str
    round: int
    requests: int
    completed: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    median_ttft_ms: float
    p99_ttft_ms: float
    median_tpot_ms: float
    p99_tpot_ms: float
    output_tokens_per_s: float
    tokens_per_step: float = 1.0


class Measure(NamedTuple):
    """A column: what it is called, how it is read from a record, whether less is better, digits behind the point."""

    title: str
    of: Callable[[ServingRecord], float]
    less_is_better: bool = True
    digits: int = 1


MEASURES = (
    Measure("TTFT median, ms", lambda record: record.median_ttft_ms),
    Measure("TTFT p99, ms", lambda record: record.p99_ttft_ms),
    Measure("TPOT median, ms", lambda record: record.median_tpot_ms),
    Measure("TPOT p99, ms", lambda record: record.p99_tpot_ms),
    Measure("output tokens/s", lambda record: record.output_tokens_per_s, less_is_better=False),
    Measure("tokens per step", lambda record: record.tokens_per_step, less_is_better=False, digits=2),
)


class Summary(NamedTuple):
    """Of one measure over the rounds of a variant: median, least and greatest."""

    median: float
    least: float
    greatest: float


def variants_of(records: list[ServingRecord]) -> list[str]:
    """In the order in which they were measured first."""
    return list(dict.fromkeys(record.variant for record in records))


def summary(records: list[ServingRecord], variant: str, measure: Measure) -> Summary:
    """Over all rounds of `variant`, at least one."""
    values = [measure.of(record) for record in records if record.variant == variant]
    return Summary(median(values), min(values), max(values))


def rows_of(records: list[ServingRecord], measures: Sequence[Measure] = MEASURES) -> list[list[str]]:
    """A row per variant: its name, then each measure as `median (least .. greatest)` over the rounds."""
    return [
        [variant, *(_shown(summary(records, variant, measure), measure.digits) for measure in measures)]
        for variant in variants_of(records)
    ]


def _shown(value: Summary, digits: int) -> str:
    median, least, greatest = (f"{number:,.{digits}f}" for number in value)
    return f"{median} ({least} .. {greatest})"


def text_table(records: list[ServingRecord]) -> str:
    """For a terminal."""
    rows = [["", *(measure.title for measure in MEASURES)], *rows_of(records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def write_serving_records(path: Path, records: list[ServingRecord]) -> None:
    """Raises `OSError`."""
    write_json(path, records)


def read_serving_records(path: Path) -> list[ServingRecord]:
    """Raises `InvalidInput` if the file is not what `write_serving_records` writes; `OSError`."""
    try:
        records = msgspec.json.decode(path.read_bytes(), type=list[ServingRecord])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{path} does not hold records of bench serving: {error}") from error
    if not records:
        raise InvalidInput(f"{path} holds no record")
    return records
