"""The arithmetic of windows: which region begins where, and how many bytes a configuration needs.

Offsets are computed here and nowhere else; the kernels receive them (`kernels/include/exchange.h`). This module needs
neither torch nor SGLang, so that a plan can be made anywhere.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.errors import InvalidInput, Unsupported, WindowTooSmall

LAYOUT_VERSION = 4
LINE_BYTES = 64
UNIT_BYTES = 32
COUNTS_PER_UNIT = 6
PAGE_BYTES = 4096
CHECKSUM_BYTES = 8
HIDDEN_MULTIPLE = 16
MAX_RANKS = 4096
MAX_PLAN_CHUNKS = 64
"""Most chunks into which a rank divides its tokens in a `PrefillPlan`."""
MAX_PLAN_COUNTS = 1024
"""Most counts of a `PrefillPlan`, as long as there is a chunk: every rank has a mailbox for the plan of each other."""

MAX_TIMEOUT_S = 1_000_000
MAX_ROWS = 2**32
"""Most rows of a slot: a place in a window is a number of 32 bits."""
MAX_COUNT = 2**31 - 1
"""Most rows that a rank sends in one call, and most counts of all ranks: numbers of 32 bits, with a sign in tensors."""
MAX_WINDOW_BYTES = 2**63 - 1

# Least and most, the most being what fields of the kernels' structs hold.
_BOUNDS = {
    "ranks": (1, MAX_RANKS),
    "num_experts": (1, 2**31 - 1),
    "hidden": (HIDDEN_MULTIPLE, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "topk": (1, 256),
    "slots": (1, 64),
}

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
QUANTISATIONS = ("int8",)
LAYOUTS = ("compact", "padded")
COUNTS = ("auto", "matrix", "grants")
RENDEZVOUS_UNITS = 2000
"""Count units that it takes as long to push and read as one more rendezvous does."""


class ExchangeParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all ranks of an exchange agree on.

    num_experts: of all ranks together, divisible by their number; rank r holds the r-th part of them.
    hidden: elements per row, a multiple of 16.
    max_tokens: most tokens that one rank brings to one call.
    topk: ids per token.
    dtype: "bfloat16", "float16" or "float32".
    quant: "int8" places rows as int8 with one scale per row (`ExpertRows.scales`); results stay in dtype.
    distinct_topk: promises that no token names an expert twice, which makes windows smaller.
    window_bytes: bytes of each rank's window; None takes what one round of max_tokens needs.
    timeout_s: bound of every single wait for other ranks, in seconds.
    slots: dispatches that can be open at the same time.
    layout: "compact" lays experts' rows one after the other; "padded" gives every expert room for ranks * max_tokens
        rows, so that expert e's begin at row e * ranks * max_tokens (needs distinct_topk=True).
    verify: sends a checksum with every row and compares it before the row is used; `Corruption` if it differs.
    counts: "matrix" sends the counts of all experts to every rank; "grants" sends a rank those of its own experts only,
        and it answers with the places of their rows; "auto" takes what needs less time with so many ranks.
    """

    ranks: int
    num_experts: int
    hidden: int
    max_tokens: int
    topk: int
    dtype: str = "bfloat16"
    quant: str | None = None
    distinct_topk: bool = False
    window_bytes: int | None = None
    timeout_s: float = 30.0
    slots: int = 1
    layout: str = "compact"
    verify: bool = False
    counts: str = "auto"

    @property
    def local_experts(self) -> int:
        return self.num_experts // self.ranks

    @property
    def rows_per_token(self) -> int:
        """Most rows that one token sends to one rank."""
        return min(self.topk, self.local_experts) if self.distinct_topk else self.topk

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is placed in the expert's window."""
        return self.hidden if self.quant == "int8" else self.out_row_bytes

    @property
    def out_row_bytes(self) -> int:
        """Bytes of an expert's result."""
        return self.hidden * ELEMENT_BYTES[self.dtype]

    @property
    def expert_rows(self) -> int:
        """Rows from where an expert's begin to where the next one's do; 0 if experts lie without gaps."""
        return self.ranks * self.max_tokens if self.layout == "padded" else 0

    @property
    def granting(self) -> bool:
        """Whether ranks grant places; otherwise each derives all of them from the counts of all."""
        if self.counts != "auto":
            return self.counts == "grants"
        return self.ranks * (_units(self.num_experts) - 2 * _units(self.local_experts) - 1) > RENDEZVOUS_UNITS

    @property
    def counted_experts(self) -> int:
        """Experts of which a rank tells another one how many rows it has."""
        return self.local_experts if self.granting else self.num_experts

    @property
    def plan_chunks(self) -> int:
        """Most chunks of a `PrefillPlan`."""
        return max(1, min(MAX_PLAN_CHUNKS, MAX_PLAN_COUNTS // self.ranks))


class Regions(msgspec.Struct, frozen=True):
    """One number per region of a window: its offset, or its size in bytes."""

    state: int
    status: int
    records: int
    grants: int
    mailboxes: int
    arrive: int
    done: int
    rows: int
    scales: int
    out: int
    row_checks: int
    out_checks: int


class WindowLayout(msgspec.Struct, frozen=True):
    """A laid-out window; the same on every rank.

    `capacity` is in rows per slot, everything else in bytes. `offsets` count from the window's base.
    """

    parameters: ExchangeParameters
    capacity: int
    expert_rows: int
    granting: bool
    counted_experts: int
    count_units: int
    mailbox_bytes: int
    offsets: Regions
    sizes: Regions
    total_bytes: int

    def digest(self) -> bytes:
        """16 bytes that differ between windows that do not fit together."""
        encoded = msgspec.msgpack.encode((LAYOUT_VERSION, self))
        return hashlib.blake2b(encoded, digest_size=16).digest()


class WindowMemory(msgspec.Struct, frozen=True):
    """Bytes of one rank's window, before anything is allocated."""

    regions: Regions
    total: int
    capacity_rows: int

    def by_region(self) -> dict[str, int]:
        """Bytes of every region that this window has, and what rounding to whole pages adds."""
        sizes = msgspec.structs.asdict(self.regions)
        sizes["padding"] = self.total - sum(sizes.values())
        return {name: size for name, size in sizes.items() if size}


def exchange_parameters(*, dtype: object = "bfloat16", **fields: object) -> ExchangeParameters:
    """`ExchangeParameters` of keywords, whose dtype may be torch's.

    Raises `InvalidInput` for a value of another type, a keyword that is no field, and a field that is missing.
    """
    try:
        return msgspec.convert({"dtype": str(dtype).removeprefix("torch."), **fields}, ExchangeParameters)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"arguments of an exchange: {error}") from error


def check_parameters(parameters: ExchangeParameters) -> None:
    """Raises `InvalidInput` or `Unsupported`, naming the parameter to change."""
    p = parameters
    for name, (least, most) in _BOUNDS.items():
        value = getattr(p, name)
        if not least <= value <= most:
            raise InvalidInput(f"{name}={value} is outside {least} .. {most}")
    if p.num_experts % p.ranks:
        raise InvalidInput(
            f"num_experts={p.num_experts} cannot be divided evenly over {p.ranks} ranks; "
            f"use a number of ranks that divides num_experts"
        )
    if p.max_tokens * p.topk > MAX_COUNT:
        raise InvalidInput(
            f"max_tokens={p.max_tokens} times topk={p.topk} is more than {MAX_COUNT} rows of one rank; lower max_tokens"
        )
    if p.counts not in COUNTS:
        raise Unsupported(f"counts={p.counts!r} is none of {', '.join(COUNTS)}")
    if p.num_experts * p.ranks > MAX_COUNT:
        raise InvalidInput(
            f"num_experts={p.num_experts} for each of {p.ranks} ranks is more than {MAX_COUNT} counts; "
            f"lower num_experts"
        )
    if p.hidden % HIDDEN_MULTIPLE:
        raise InvalidInput(f"hidden={p.hidden} is not a multiple of {HIDDEN_MULTIPLE}")
    if p.distinct_topk and p.topk > p.num_experts:
        raise InvalidInput(f"topk={p.topk} exceeds num_experts={p.num_experts} with distinct_topk=True")
    if not 0 < p.timeout_s <= MAX_TIMEOUT_S:
        raise InvalidInput(f"timeout_s={p.timeout_s}: must be above 0 and at most {MAX_TIMEOUT_S} seconds")
    if p.dtype not in ELEMENT_BYTES:
        raise InvalidInput(f"dtype={p.dtype} is not one of {', '.join(ELEMENT_BYTES)}")
    if p.quant is not None and p.quant not in QUANTISATIONS:
        raise Unsupported(f"quant={p.quant!r} is none of {', '.join(QUANTISATIONS)}; None sends rows in dtype")
    if p.layout not in LAYOUTS:
        raise Unsupported(f"layout={p.layout!r} is none of {', '.join(LAYOUTS)}")
    if p.layout == "padded" and not p.distinct_topk:
        raise InvalidInput("layout='padded' has room for a token once per expert; it needs distinct_topk=True")
    if p.layout == "padded" and p.verify:
        raise Unsupported("verify=True: checksums exist with layout='compact' only")


def plan_window(parameters: ExchangeParameters) -> WindowLayout:
    """Lays out a window.

    With `window_bytes` None the capacity is what max_tokens from every rank can need in one round, R * T * K rows
    (with `distinct_topk` R * T * min(K, E_local); padded R * T * E_local). Otherwise it is what fits into
    `window_bytes`, which for a padded window has to be all.

    Raises `InvalidInput` and `Unsupported` as `check_parameters`, and `WindowTooSmall` where not even one token of
    every rank fits.
    """
    check_parameters(parameters)
    p = parameters
    control = _control_sizes(p)
    capacity = _capacity(p, _round_up(sum(control), PAGE_BYTES))
    if capacity > MAX_ROWS:
        raise InvalidInput(
            f"{capacity} rows in a slot are more than {MAX_ROWS}; lower max_tokens={p.max_tokens}, or set a smaller "
            f"window_bytes"
        )
    sizes = (*control, *_row_sizes(p, capacity))
    offsets = []
    position = 0
    for region, size in enumerate(sizes):
        if region == len(control):
            position = _round_up(position, PAGE_BYTES)
        offsets.append(position)
        position += size
    if position > MAX_WINDOW_BYTES:
        raise InvalidInput(
            f"a window of {position} bytes is more than {MAX_WINDOW_BYTES}; lower max_tokens={p.max_tokens}, "
            f"hidden={p.hidden} or slots={p.slots}, or set a smaller window_bytes"
        )
    return WindowLayout(
        parameters=p,
        capacity=capacity,
        expert_rows=p.expert_rows,
        granting=p.granting,
        counted_experts=p.counted_experts,
        count_units=_units(p.counted_experts),
        mailbox_bytes=_mailbox_bytes(p),
        offsets=Regions(*offsets),
        sizes=Regions(*sizes),
        total_bytes=position,
    )


def bytes_for_capacity(parameters: ExchangeParameters, rows: int) -> int:
    """The smallest `window_bytes` whose window has a capacity of `rows` per slot."""
    return _round_up(sum(_control_sizes(parameters)), PAGE_BYTES) + sum(_row_sizes(parameters, rows))


class ExpectedRounds(NamedTuple):
    """Of the most tokens: if every rank receives the same, and at worst."""

    alike: int
    worst: int


def expected_rounds(parameters: ExchangeParameters, capacity: int) -> ExpectedRounds:
    """Rounds of `max_tokens` tokens from every rank, one after the other, with `capacity` rows.

    Those that overlap have half a window each, so they are twice as many where it is more than one.
    """
    p = parameters
    whatever_the_routing = capacity // (p.ranks * p.rows_per_token)
    return ExpectedRounds(
        alike=max(1, -(-p.max_tokens * p.topk // capacity)), worst=-(-p.max_tokens // whatever_the_routing)
    )


def window_memory(layout: WindowLayout) -> WindowMemory:
    return WindowMemory(regions=layout.sizes, total=layout.total_bytes, capacity_rows=layout.capacity)


def _units(counts: int) -> int:
    return -(-counts // COUNTS_PER_UNIT)


def _mailbox_bytes(p: ExchangeParameters) -> int:
    # A PrefillPlan: at most 5 bytes a count, and 512 for everything around the counts.
    return _round_up(512 + 5 * p.plan_chunks * p.ranks, LINE_BYTES)


def _control_sizes(p: ExchangeParameters) -> tuple[int, ...]:
    """Bytes of all regions but rows and out, in the order of `Regions`; each a multiple of a line."""
    records = p.ranks * (1 + _units(p.counted_experts)) * UNIT_BYTES
    return (
        (1 + 2 * p.slots) * LINE_BYTES,
        p.ranks * LINE_BYTES,
        _round_up(2 * records, LINE_BYTES),
        _round_up(records, LINE_BYTES) if p.granting else 0,
        2 * p.ranks * _mailbox_bytes(p),
        2 * p.slots * p.ranks * LINE_BYTES,
        2 * p.slots * p.ranks * LINE_BYTES,
    )


def _row_sizes(p: ExchangeParameters, capacity: int) -> tuple[int, ...]:
    """Bytes of rows, scales, out, row_checks and out_checks, in the order of `Regions`; each of whole pages."""
    return tuple(_round_up(p.slots * capacity * size, PAGE_BYTES) for size in _row_parts(p))


def _row_parts(p: ExchangeParameters) -> tuple[int, int, int, int, int]:
    # A scale, and in a padded window the token of the row.
    scale_bytes = LINE_BYTES if p.quant or p.expert_rows else 0
    check_bytes = CHECKSUM_BYTES if p.verify else 0
    return p.row_bytes, scale_bytes, p.out_row_bytes, check_bytes, check_bytes


def _capacity(p: ExchangeParameters, control_bytes: int) -> int:
    enough = p.expert_rows * p.local_experts or p.ranks * p.max_tokens * p.rows_per_token
    if p.window_bytes is None:
        return enough
    parts = _row_parts(p)
    capacity = min(enough, max(p.window_bytes - control_bytes, 0) // (p.slots * sum(parts)))
    # Each region is rounded up to pages: what that adds has to be given up in rows, a few at most.
    while capacity > 0 and bytes_for_capacity(p, capacity) > p.window_bytes:
        capacity -= 1
    least = enough if p.expert_rows else p.ranks * p.rows_per_token
    if capacity < least:
        raise WindowTooSmall(
            f"window_bytes={p.window_bytes} cannot hold {'all tokens' if p.expert_rows else 'one token'} of each of "
            f"{p.ranks} ranks; "
            f"at least window_bytes={bytes_for_capacity(p, least)} is needed"
        )
    return capacity


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
