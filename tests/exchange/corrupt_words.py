"""Words and records of a window that are replaced while an exchange goes on, and what ranks may make of it."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import torch

from sglang_ascend_moe.errors import AscendMoeError, Corruption, InvalidInput, PeerFault, PeerTimeout, SessionPoisoned
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.windows.layout import LINE_BYTES, UNIT_BYTES, WindowLayout

from .harmed_ranks import SCENARIO, call, small_window
from .pool import Rank
from .surface import open_exchange

Replacement = Literal["random", "zero", "ones", "previous", "next"]
REPLACEMENTS: tuple[Replacement, ...] = ("random", "zero", "ones", "previous", "next")
PLACES = ("state", "part", "status", "header", "counts", "mailbox", "arrive", "done")
GRANTED = ("grant", "granted")
"""Only where ranks grant places."""
REGIONS = {
    "state": "state", "part": "state", "status": "status", "header": "records", "counts": "records",
    "mailbox": "mailboxes", "arrive": "arrive", "done": "done", "checks": "rows",
    "grant": "grants", "granted": "grants",
}  # fmt: skip
STEPS = [Step.ANNOUNCE, Step.COUNTS, Step.PLACE, Step.ARRIVALS, Step.EXPERTS, Step.DONE, Step.REDUCE]
HOWS = ("decode", "run-prefill", "verified", "refused")
MAY_WAIT = ("zero", "previous")
"""As if a word had not come yet: then somebody waits for it until the timeout."""
SHORT_TIMEOUT_S, LONG_TIMEOUT_S = 4.0, 60.0
SAMPLED, SAMPLED_WAITING = 12, 2
"""Cases of each combination on every change, and how many of them may wait; all of them at night."""
CALLS_BEFORE, CALLS_AFTER = 2, 3


class Case(NamedTuple):
    """At `step`, for the `turn`-th time in a call, `holder` finds what `source` has written replaced in its window."""

    place: str
    replacement: Replacement
    step: Step
    turn: int
    holder: int
    source: int
    word: int | None
    """Only this word of the record; None: all of it."""

    def __str__(self) -> str:
        return (
            f"{self.place} of rank {self.source} {self.replacement} at {self.step.name.lower()} {self.turn} of rank"
            f" {self.holder}, word {self.word}"
        )

    @property
    def region(self) -> str:
        return REGIONS[self.place]


class Outcome(NamedTuple):
    """How the calls after the replacement ended on a rank; no code: well."""

    code: str = ""
    region: str | None = None
    rank: int | None = None
    value: int | None = None
    message: str = ""


def all_cases(ranks: int, how: str, seed: int, places: Sequence[str] = PLACES) -> list[Case]:
    """Every one of the places with every replacement at every step, of ranks, turns and words that are drawn."""
    chance = random.Random(f"{ranks} {how} {seed}")
    places = (*places, "checks") if how == "verified" else places
    cases = []
    for place, replacement, step in product(places, REPLACEMENTS, STEPS[:2] if how == "refused" else STEPS):
        holder = chance.randrange(ranks)
        source = holder if place in ("state", "part") else chance.randrange(ranks)
        word = chance.choice((None, chance.randrange(4)))
        turn = chance.randrange(1, 4) if how == "run-prefill" else 1
        case = Case(place, replacement, step, turn, holder, source, word)
        if not is_unknowable(case, how):
            cases.append(case)
    return cases


def sample(cases: list[Case], seed: int) -> list[Case]:
    """Some of the cases."""
    chance = random.Random(seed)
    waiting = [case for case in cases if case.replacement in MAY_WAIT]
    others = [case for case in cases if case.replacement not in MAY_WAIT]
    return chance.sample(waiting, SAMPLED_WAITING) + chance.sample(others, SAMPLED - SAMPLED_WAITING)


def is_unknowable(case: Case, how: str) -> bool:
    """Whether nothing but a row's checksum can tell the replaced word from the one that its writer will write: the word
    of the next exchange, after that of this one has been read (docs/architecture.md)."""
    if case.replacement != "next" or how == "verified":
        return False
    read_at = {"arrive": Step.ARRIVALS, "done": Step.DONE}.get(case.place)
    return read_at is not None and (case.step > read_at or how == "run-prefill")


class Replacer:
    """A step hook of `holder` that does what a case says, once."""

    def __init__(self, case: Case, exchange: Any, seed: int) -> None:
        self._case = case
        self._layout: WindowLayout = exchange.layout
        self._window = exchange._steps._windows[case.holder]
        self._session = exchange._steps.session
        self._chance = random.Random(f"{case} {seed}")
        self._turns = 0
        self._before: bytes | None = None
        self.armed = False

    def __call__(self, step: Step) -> None:
        if step != self._case.step:
            return
        offset, size = self._place()
        current = self._read(offset, size)
        self._turns += self.armed
        if self.armed and self._turns == self._case.turn:
            begin, end = self._replaced_bytes(size)
            self._write(offset + begin, self._replacement(current)[begin:end])
        elif not self.armed:
            self._before = current

    @property
    def _epoch(self) -> int:
        return int.from_bytes(self._read(self._layout.offsets.state, 8), "little")

    def _place(self) -> tuple[int, int]:
        """Where the case's record lies, and its bytes."""
        layout, place, source = self._layout, self._case.place, self._case.source
        offsets, ranks = layout.offsets, layout.parameters.ranks
        parity = self._epoch % 2 * ranks + source
        record = parity * (1 + layout.count_units) * UNIT_BYTES
        match place:
            case "state":
                return offsets.state, 24
            case "part":
                return offsets.state + LINE_BYTES, 24
            case "header":
                return offsets.records + record, UNIT_BYTES
            case "counts":
                return offsets.records + record + UNIT_BYTES, UNIT_BYTES
            case "grant" | "granted":
                record = source * (1 + layout.count_units) * UNIT_BYTES
                return offsets.grants + record + (place == "granted") * UNIT_BYTES, UNIT_BYTES
            case "mailbox":
                return offsets.mailboxes + parity * layout.mailbox_bytes, 32
            case "checks":
                return offsets.row_checks, 8
            case "status":
                return offsets.status + source * LINE_BYTES, 24
            case _:
                return getattr(offsets, place) + source * LINE_BYTES, 8

    def _replaced_bytes(self, size: int) -> tuple[int, int]:
        """Where what is replaced begins and ends in a record; the writer may write the rest meanwhile."""
        if self._case.word is None:
            return 0, size
        begin = 8 * (self._case.word % (size // 8))
        return begin, begin + 8

    def _replacement(self, current: bytes) -> bytes:
        match self._case.replacement:
            case "random":
                return self._chance.randbytes(len(current))
            case "zero":
                return bytes(len(current))
            case "ones":
                return b"\xff" * len(current)
            case "previous":
                return self._before or current
            case _:
                return self._next(current)

    def _next(self, current: bytes) -> bytes:
        """As it will be, or look, an exchange later; what has no epoch, with its first number one higher."""
        if self._case.place in ("header", "counts", "arrive", "done", *GRANTED):
            tag = int.from_bytes(current[:2], "little") or Kind.DECODE
            return (self._epoch + 1 << 16 | tag).to_bytes(8, "little") + current[8:]
        return ((int.from_bytes(current[:8], "little") + 1) % 2**64).to_bytes(8, "little") + current[8:]

    def _read(self, offset: int, size: int) -> bytes:
        return bytes(self._window.view(offset, (size,), torch.uint8).tolist())

    def _write(self, offset: int, data: bytes) -> None:
        words = struct.unpack(f"<{len(data) // 8}q", data)
        self._window.view(offset, (len(words),), torch.int64).copy_(torch.tensor(words))


def outcomes_of(rank: Rank, how: str, cases: list[Case], seed: int) -> list[Outcome]:
    """What this rank makes of each case, in an exchange of its own. Raises for a result that is wrong."""
    return [outcome_of(rank, how, case, seed) for case in cases]


def outcome_of(rank: Rank, how: str, case: Case, seed: int) -> Outcome:
    options = small_window(rank) if how == "run-prefill" else {"verify": how == "verified"}
    timeout_s = SHORT_TIMEOUT_S if case.replacement in MAY_WAIT else LONG_TIMEOUT_S
    with open_exchange("windows", rank, SCENARIO, timeout_s=timeout_s, **options) as exchange:
        replacer = Replacer(case, exchange, seed)
        if rank.rank == case.holder:
            exchange.watch_steps(replacer)
        for _ in range(CALLS_BEFORE):
            call_once(exchange, how, rank, case)
        torch.distributed.barrier()
        replacer.armed = True
        try:
            for _ in range(CALLS_AFTER):
                call_once(exchange, how, rank, case)
        except Corruption as error:
            return Outcome(error.code, error.region, error.rank, error.value, str(error))
        except PeerFault as error:
            return Outcome(error.code, rank=error.rank, message=str(error))
        except AscendMoeError as error:
            return Outcome(error.code, message=str(error))
        except Exception as error:
            error.add_note(f"{case}, {how}")
            raise
    return Outcome()


def call_once(exchange: Any, how: str, rank: Rank, case: Case) -> None:
    """One call with its result, which of "refused" is that the source's input is refused everywhere."""
    if how != "refused":
        call(exchange, "decode" if how == "verified" else how, rank)
        return
    x, ids, weights = SCENARIO.inputs(rank.size)[rank.rank]
    try:
        exchange.dispatch(x.double() if rank.rank == case.source else x, ids, weights)
    except InvalidInput as error:
        if "float64; it must be" in str(error) and f"rank {case.source}" in f"{error}".replace("this rank (", "rank "):
            return
        raise
    raise AssertionError("a wrong dtype was not refused")


def require_known(case: Case, outcomes: list[Outcome], how: str) -> None:
    """Raises unless all ranks went on, or all name what was replaced."""
    ended = [outcome for outcome in outcomes if outcome.code]
    if not ended:
        return
    corruptions = {outcome[:4] for outcome in outcomes if outcome.code == Corruption.code}
    if corruptions:
        regions = {case.region, "rows", "out"} if how == "verified" else {case.region}
        [(_, region, rank, _)] = corruptions
        known = region in regions and (rank == case.source or case.place == "checks")
        if known and all(outcome.code == Corruption.code for outcome in outcomes):
            return
    elif case.replacement in MAY_WAIT:
        # Who waits for the holder meanwhile may be the first to lose patience.
        named = {outcome.rank for outcome in outcomes if outcome.code == PeerTimeout.code}
        told = {rank for rank, outcome in enumerate(outcomes) if outcome.code == SessionPoisoned.code}
        if len(ended) == len(outcomes) and len(named) == 1 and named <= {case.source, case.holder} and told <= named:
            return
    raise AssertionError(f"{case}, {how}: {outcomes}")
