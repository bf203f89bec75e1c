"""What is measured: cases, the presets that make many of them, and the one struct that a whole run is told by."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import msgspec

Phase = Literal["decode", "prefill"]
Dtype = Literal["bf16", "int8"]
Routing = Literal["uniform", "zipf", "one-expert"]

VARIANTS = (
    "relay-free", "relay", "relay-direct", "collective", "collective-native", "mpi", "memcpy", "quantise-memcpy",
)  # fmt: skip
"""In the order of the table. Described in docs/benchmarks.md."""
DEFAULT_VARIANTS = VARIANTS
PHASES, DTYPES, ROUTINGS = get_args(Phase), get_args(Dtype), get_args(Routing)
HIDDEN_MULTIPLE = 16


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One shape that every variant is measured with. `tokens` is what each rank brings."""

    phase: Phase
    ranks: int
    hidden: int
    tokens: int
    topk: int
    experts: int
    dtype: Dtype
    routing: Routing
    seed: int

    def text(self) -> str:
        return (
            f"{self.phase}, {self.ranks} ranks, {self.tokens} tokens of {self.hidden} {self.dtype}, "
            f"top {self.topk} of {self.experts} experts, {self.routing}"
        )


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, as the command hands it to the ranks.

    iterations: most of them per case; a case ends earlier when `case_seconds` are over, and all cases together take
    about `total_seconds` at most. `store`: the path of the meeting point of the ranks; `results`: where they write what
    they found, anew after each case. `absent` [variant]: why it cannot run here at all.
    """

    cases: list[Case]
    variants: list[str]
    iterations: int
    case_seconds: float
    total_seconds: float
    store: str
    results: list[str]
    absent: dict[str, str]


class Preset(NamedTuple):
    """Values for what is not given by flags, and how long the whole may take."""

    help: str
    phase: Phase
    hidden: tuple[int, ...]
    tokens: tuple[int, ...]
    dtype: tuple[Dtype, ...]
    routing: Routing
    iterations: int
    case_seconds: float
    total_seconds: float


PRESETS = {
    "quick": Preset(
        "a first look: decode and bf16, two batches", "decode", (4096,), (16, 96), ("bf16",), "uniform", 50, 10, 60
    ),
    "paper-decode": Preset(
        "the paper's decode tables: hidden 4096 and 7168, bf16 and int8, 16 to 144 tokens",
        "decode", (4096, 7168), (16, 48, 96, 144), ("bf16", "int8"), "uniform", 200, 22, 500,
    ),
    "paper-prefill": Preset(
        "the paper's prefill figure: 1,024 to 16,384 tokens",
        "prefill", (4096,), (1024, 2048, 4096, 8192, 16384), ("bf16",), "uniform", 50, 60, 500,
    ),
}  # fmt: skip


def problem_with(case: Case) -> str | None:
    """What makes `case` impossible, naming the flag to change; None if nothing does."""
    if case.ranks < 1:
        return f"--ranks {case.ranks}: at least one rank is needed"
    if case.experts < 1 or case.experts % case.ranks:
        return f"--experts {case.experts}: must be a multiple of --ranks {case.ranks}"
    if case.hidden < HIDDEN_MULTIPLE or case.hidden % HIDDEN_MULTIPLE:
        return f"--hidden {case.hidden}: must be a positive multiple of {HIDDEN_MULTIPLE}"
    if case.tokens < 1:
        return f"--tokens {case.tokens}: at least one token is needed"
    if not 1 <= case.topk <= case.experts:
        return f"--topk {case.topk}: must be between 1 and --experts {case.experts}"
    return None
