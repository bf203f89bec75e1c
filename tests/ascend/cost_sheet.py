"""Writes kernels/ascend/costs.md: what the Ascend kernels cost each core at the paper's shapes, counted by the model.

python -m tests.ascend.cost_sheet
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.exchange.pool import Rank
from tests.exchange.reference import RankInput
from tests.exchange.scenario import Scenario
from tests.exchange.surface import open_exchange

from .conftest import compile_objects, link_library
from .host_model import KERNELS, CoreCosts, on_model
from .modelled_time import Clock

PAGE = KERNELS / "ascend" / "costs.md"
RANKS = 2
CORES = 48
"""AIV cores of one NPU."""


class Shape(NamedTuple):
    """One line of the sheet; every rank brings `tokens`, and every id is routed."""

    tokens: int
    hidden: int
    quant: str | None = None
    phase: str = "decode"

    def scenario(self) -> Scenario:
        return Scenario(
            tokens=(self.tokens,), hidden=self.hidden, topk=8, experts_per_rank=128, routing="distinct", rows="constant"
        )


DECODE = [
    Shape(tokens, hidden, quant) for hidden in (4096, 7168) for quant in (None, "int8") for tokens in (16, 48, 96, 144)
]
PREFILL = [Shape(1024, 4096, phase="prefill")]


class KernelCosts(NamedTuple):
    """The costs of one launch, by core."""

    cores: list[CoreCosts]
    least_loaded: int
    """Bytes of rows that have to be loaded if each moves once."""
    least_stored: int

    def is_even(self, names: Sequence[str], unit: int) -> bool:
        """Whether no core moves a tenth more than another, or more by `unit` bytes, in these directions together."""
        moved = [sum(getattr(core, name) for name in names) for core in self.cores]
        return max(moved) <= max(1.1 * min(moved), min(moved) + unit)

    @property
    def loaded(self) -> int:
        return sum(core.loaded_row_bytes for core in self.cores)

    @property
    def stored(self) -> int:
        return sum(core.stored_row_bytes for core in self.cores)

    def most(self, name: str) -> int:
        return max(getattr(core, name) for core in self.cores)


class Costs(NamedTuple):
    dispatch: KernelCosts
    combine: KernelCosts


def costs_of(clock: Clock, shape: Shape) -> Costs:
    """Both kernels of one exchange, on rank 0."""
    scenario = shape.scenario()
    row = shape.hidden * 2
    placed = shape.hidden if shape.quant else row
    pairs = shape.tokens * scenario.topk
    times = clock.run(scenario, RANKS, CORES, quant=shape.quant, phase=shape.phase)
    return Costs(
        KernelCosts(times.dispatch[0].cores, shape.tokens * row, pairs * placed),
        KernelCosts(times.combine[0].cores, pairs * row, shape.tokens * row),
    )


def costs_with(rank: Rank, library: str, cores: int, shape: Shape, given: RankInput) -> Costs:
    """Both kernels of one exchange with this input, on this rank of a pool."""
    scenario = shape.scenario()
    row = shape.hidden * given.x.element_size()
    placed = shape.hidden if shape.quant else row
    pairs = int((given.topk_ids >= 0).sum())
    with (
        on_model(library, cores) as model,
        open_exchange("windows", rank, scenario, quant=shape.quant) as exchange,
    ):
        rows = exchange.dispatch(*given, phase=shape.phase)
        dispatch = KernelCosts(model.costs(), shape.tokens * row, pairs * placed)
        exchange.combine(rows.out.zero_(), rows)
        combine = KernelCosts(model.costs(), pairs * row, shape.tokens * row)
    return Costs(dispatch, combine)


def kibibytes(value: float) -> str:
    return f"{value / 1024:.1f}"


def table(costs: dict[Shape, Costs]) -> str:
    lines = [
        "| kernel | hidden | rows | tokens | rows in, KiB | rows out, KiB | other in, KiB | copies in / out | "
        "scalar | unified buffer, KiB | barriers |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape, both in costs.items():
        for name, kernel in zip(("dispatch", "combine"), both, strict=True):
            cells = (
                f"{shape.phase} {name}", shape.hidden, shape.quant or "bf16", shape.tokens,
                kibibytes(kernel.most("loaded_row_bytes")), kibibytes(kernel.most("stored_row_bytes")),
                kibibytes(kernel.most("loaded_other_bytes")),
                f"{kernel.most('loads')} / {kernel.most('stores')}", kernel.most("scalar_accesses"),
                kibibytes(kernel.most("ub_high_water")), kernel.most("pipe_barriers"),
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def measure(clock: Clock) -> dict[Shape, Costs]:
    """At every shape."""
    return {shape: costs_of(clock, shape) for shape in (*DECODE, *PREFILL)}


TEXT = f"""# Counted costs

{RANKS} ranks, {CORES} AIV cores, 256 experts, top-8, counted by the model (`python -m tests.ascend.cost_sheet` writes
this page): the core with the most, without repeated polls. Every row is loaded and stored no more often than needed, no
core moves more than a tenth or a unit more than another (`tests/ascend/test_costs.py`). *Scalar*: polls included.

{{costs}}
"""


def page(costs: dict[Shape, Costs]) -> str:
    return TEXT.format(costs=table(costs))


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(page(measure(Clock(link_library(compile_objects(Path(name)))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
