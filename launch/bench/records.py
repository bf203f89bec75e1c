"""The records of a run: what the JSON file is a list of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.bench.cases import Case, Dtype, Phase, Routing
from sglang_ascend_moe.launch.bench.output_files import write_json

Op = Literal["dispatch", "combine"]
OPS: tuple[Op, ...] = ("dispatch", "combine")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operation of one variant in one case.

    Times in microseconds, from when the first rank begins until the last has ended. `checked`: what it delivered was
    compared with what had to arrive before anything was timed. `absent`: why the variant could not be measured; then
    there are no times. `store`: how it writes rows, where it has a choice; `payload_bytes`: what one rank has to move,
    on average over the ranks. `doubtful`: the machine was too busy for the times to be believed (see `judged`).
    """

    op: Op
    phase: Phase
    ranks: int
    hidden: int
    tokens: int
    topk: int
    experts: int
    dtype: Dtype
    routing: Routing
    seed: int
    variant: str
    median_us: float | None
    p10_us: float | None
    p90_us: float | None
    iterations: int
    checked: bool
    store: str | None = None
    payload_bytes: int | None = None
    absent: str | None = None
    doubtful: bool = False

    def __post_init__(self) -> None:
        times = [value for value in (self.median_us, self.p10_us, self.p90_us) if value is not None]
        expected = 3 if self.absent is None else 0
        if len(times) != expected or (self.iterations > 0) != (expected > 0):
            raise ValueError("a record has either times or a reason why it is absent")

    @property
    def case(self) -> Case:
        return Case(**{name: getattr(self, name) for name in Case.__struct_fields__})


def judged(records: list[Record]) -> list[Record]:
    """The records of one case: if most of its numbers are doubtful, all are, for they were measured in turn."""
    measured = [record for record in records if record.absent is None]
    if 2 * sum(record.doubtful for record in measured) <= len(measured):
        return records
    return [msgspec.structs.replace(record, doubtful=record.absent is None) for record in records]


def write_records(path: Path, records: Sequence[msgspec.Struct]) -> None:
    """The whole file at once: whoever reads it finds what was there before, or all of `records`. Raises `OSError`."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_json(new, records)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def read_records(path: Path) -> list[Record]:
    """Raises `InvalidInput` if the file is not what `write_records` writes; `OSError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Record])
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidInput(f"{path} does not hold benchmark records: {error}") from error


def find(records: list[Record], case: Case, op: Op, variant: str) -> Record | None:
    for record in records:
        if record.op == op and record.variant == variant and record.case == case:
            return record
    return None


def cases_of(records: list[Record]) -> list[Case]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(record.case for record in records))


def variants_of(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(record.variant for record in records))
