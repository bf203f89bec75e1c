"""Writes kernels/ascend/time.md: what the model charges, and how long the kernels take on its clock.

python -m tests.ascend.time_sheet
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tests.exchange.scenario import Scenario

from .conftest import compile_objects, link_library
from .cost_sheet import CORES, Shape
from .host_model import KERNELS
from .modelled_time import Clock, Constant

PAGE = KERNELS / "ascend" / "time.md"
RANKS = 8
EXPERTS = 256
TOKENS = (16, 48, 96, 144)


class Kind(NamedTuple):
    """A line of the paper's table, with its times in us: averages over batches of 16 to 144 tokens."""

    hidden: int
    quant: str | None
    dispatch: float
    combine: float

    def shapes(self) -> list[Shape]:
        return [Shape(tokens, self.hidden, self.quant) for tokens in TOKENS]


PAPER = [
    Kind(4096, None, 73.81, 46.03),
    Kind(4096, "int8", 59.46, 46.02),
    Kind(7168, None, 104.48, 70.23),
    Kind(7168, "int8", 71.48, 69.80),
]


class Counted(NamedTuple):
    """A line of the table of counts."""

    ranks: int
    experts: int


COUNTED = [
    *(Counted(ranks, EXPERTS) for ranks in (8, 16, 32)),
    *(Counted(ranks, ranks) for ranks in (16, 32, 64)),
]


TIMED = Shape(TOKENS[0], 7168, None)


class Modelled(NamedTuple):
    """The slowest rank's us."""

    dispatch: float
    combine: float


def modelled(clock: Clock, shape: Shape, ranks: int = RANKS, cores: int = CORES, *, timed: bool = False) -> Modelled:
    scenario = shape.scenario()._replace(experts_per_rank=EXPERTS // ranks)
    times = clock.run(scenario, ranks, cores, quant=shape.quant, phase=shape.phase, timed=timed)
    return Modelled(*(max(rank.us for rank in kernel) for kernel in times))


def constants_table(constants: list[Constant]) -> str:
    lines = ["| constant | value | unit | may be | source |", "|---|---|---|---|---|"]
    for one in constants:
        ends = f"{one.least:g}" if one.least == one.most else f"{one.least:g} to {one.most:g}"
        lines.append(f"| `{one.name}` | {one.value:g} | {one.unit} | {ends} | {one.source} |")
    return "\n".join(lines)


def modelled_at_ends(clock: Clock, shape: Shape) -> tuple[Modelled, Modelled]:
    """With every constant at its fastest end, and at its slowest."""
    constants = clock.constants()
    fastest = {one.name: one.most if one.is_speed else one.least for one in constants}
    slowest = {one.name: one.least if one.is_speed else one.most for one in constants}
    with clock.with_constants(**fastest):
        fast = modelled(clock, shape)
    with clock.with_constants(**slowest):
        return fast, modelled(clock, shape)


def times_rows(kind: Kind, by_tokens: list[Modelled], ends: tuple[Modelled, Modelled]) -> list[str]:
    rows = []
    for kernel in Modelled._fields:
        ours = [getattr(one, kernel) for one in by_tokens]
        paper = getattr(kind, kernel)
        cells = [kernel, kind.hidden, kind.quant or "bf16", *(f"{us:.1f}" for us in ours)]
        fast, slow = (getattr(one, kernel) for one in ends)
        cells += [f"{fast:.1f} to {slow:.1f}", f"{mean(ours):.1f}", f"{paper:.1f}", f"{mean(ours) / paper:.2f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def times_table(clock: Clock) -> str:
    tokens = " | ".join(f"{tokens} tokens" for tokens in TOKENS)
    lines = [
        f"| kernel | hidden | rows | {tokens} | {TOKENS[1]} tokens may be | mean | paper | mean / paper |",
        "|" + "---|" * (len(TOKENS) + 7),
    ]
    for kind in PAPER:
        ends = modelled_at_ends(clock, Shape(TOKENS[1], kind.hidden, kind.quant))
        lines += times_rows(kind, [modelled(clock, shape) for shape in kind.shapes()], ends)
    return "\n".join(lines)


def counts_row(clock: Clock, counted: Counted) -> str:
    scenario = Scenario(
        tokens=(1,), hidden=16, topk=8, experts_per_rank=counted.experts // counted.ranks, routing="distinct"
    )
    by_scheme = (clock.run(scenario, counted.ranks, CORES, counts=counts).dispatch for counts in ("matrix", "grants"))
    times = [f"{max(rank.us for rank in ranks):.1f}" for ranks in by_scheme]
    return "| " + " | ".join([*map(str, counted), *times]) + " |"


def counts_table(clock: Clock) -> str:
    lines = ["| ranks | experts | matrix | grants |", "|---|---|---|---|"]
    return "\n".join([*lines, *(counts_row(clock, counted) for counted in COUNTED)])


def timed_table(clock: Clock) -> str:
    untimed, timed = (modelled(clock, TIMED, timed=timed) for timed in (False, True))
    rows = [
        f"| {kernel} | {getattr(untimed, kernel):.1f} | {getattr(timed, kernel):.1f} |" for kernel in Modelled._fields
    ]
    return "\n".join(["| kernel | without | with |", "|---|---|---|", *rows])


TEXT = f"""# Modelled time

The host model has a clock: every instruction is charged, each pipe of each core works in order, cores meet at barriers,
words arrive after their way, and transfers share the memory and the link of each rank (`host_model/machine.h` says what
is left out). **No device has confirmed any of these times.** Half of the constants are assumed: with all of them at one
end of what they may be, kernels take what the column "may be" says. What the clock is for is to compare two versions of
a kernel, and to show what a launch waits for. Launches begin together on all ranks.

## Constants

`host_model/time_constants.h`; "may be" is what the value could be on a device.

{{constants}}

## Kernels

{RANKS} ranks, {CORES} cores, {EXPERTS} experts, top-8, in us, the slowest rank. The paper's times are averages over
batches of 16 to 144 tokens; it does not tell its number of ranks. `python -m tests.ascend.time_sheet` writes this page.

{{times}}

## Counts

Dispatch of one token of 16 elements a rank, {CORES} cores, in us, the slowest rank: what `counts="matrix"` and
`counts="grants"` take where rows take nothing.

{{counts}}

## Times of steps

{TIMED.tokens} tokens of {TIMED.hidden} elements in bf16, in us, the slowest rank: kernels without and with the times of
their steps, which they leave where a rank is traced.

{{timed}}
"""


def page(clock: Clock) -> str:
    return TEXT.format(
        constants=constants_table(clock.constants()), times=times_table(clock), counts=counts_table(clock),
        timed=timed_table(clock),
    )  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(page(Clock(link_library(compile_objects(Path(name))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
