"""Of kernels/python: the way into kernels with the C ABI of kernels/include/exchange.h.

A call that returns an int returns its `codes.Result`. What a step hook or a signal handler raises during a call ends
it, and is raised.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sglang_ascend_moe.exchange.schedules.rows import ExpertRows

class Layout:
    """Where everything lies in a window. Raises `TypeError` for a field too many or too few, `OverflowError` for a
    number that does not fit its field. Every field is an attribute as well."""

    def __init__(self, **fields: int) -> None: ...
    def __bytes__(self) -> bytes: ...

class Library:
    """A library that stays loaded. Raises `OSError` if it cannot be, and `ProtocolMismatch` if its ABI is another."""

    path: str

    def __init__(self, path: str) -> None: ...
    def select_kernels(self, name: str | None, /) -> str | None:
        """The row kernels that this process uses from now on: those called `name`, or the widest. None: this processor
        has not that ones."""
    def refuse_layout(self, layout: Layout, /) -> str | None:
        """Why the kernels cannot serve windows of this layout."""
    def initialise_window(self, layout: Layout, address: int, first_epoch: int, /) -> None: ...
    def open_session(
        self,
        layout: Layout,
        rank: int,
        windows: Sequence[int],
        peer_pidfds: Sequence[int],
        timeout_ns: int,
        workers: int,
        spin_ns: int,
        epoch: int,
        takes_host_tensors: bool,
    ) -> Session:
        """windows: addresses, peer_pidfds: descriptors or -1, both by rank. takes_host_tensors: whether calls may point
        at tensors in the memory of the host."""

class Found(NamedTuple):
    """What a call found wrong; see `faults.Fault`."""

    result: int
    culprit: int
    step: int
    cause: int
    epoch: int
    detail: int
    region: int

class Session:
    """One rank's open exchange. It owns all that the kernels get of it but the windows."""

    on_step: Callable[[int], object] | None
    """Called with each `codes.Step` as it begins, on the calling thread."""

    @property
    def address(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def waited_ns(self) -> list[int]: ...
    @property
    def missing(self) -> list[int]: ...
    @property
    def fault(self) -> Found: ...
    @property
    def refusal(self) -> bytes: ...
    @property
    def inherited(self) -> bool: ...
    def disown(self) -> None:
        """From now on nothing touches the windows: calls return `Result.POISONED`."""
    def new_call(
        self, positions: Tensor, weights: Tensor, counts: Tensor, matrix: Tensor, totals: Tensor | None, /
    ) -> Call: ...
    def refuse(self, kind: int, problem: str, /) -> int: ...
    def plan(self, block: bytes, tokens: int, error: int, detail: int, /) -> tuple[int, list[bytes]]: ...
    def count_chunks(self, ids: Tensor, chunk_tokens: int, /) -> tuple[list[list[int]], int, int]:
        """Rows [chunks, ranks], `codes.InputError`, detail."""
    def leave(self, result: int, step: int, epoch: int, /) -> None: ...
    def trace(self, ring: int, /) -> None:
        """From now on writes down steps in the `ExchangeTrace` at this address, which has to stay; 0: nowhere."""
    def trace_layer(self, epoch: int, layer: int, /) -> None:
        """Writes down which layer an exchange is of, if steps are written down; on any thread."""
    def open_device(self, cores: int, /) -> int: ...
    def check_device(self) -> int: ...
    def check_fetched(self, place: int, /) -> int: ...
    def forget_fault(self) -> None: ...
    def close_device(self) -> None: ...
    def trace_device(self, ring: int, /) -> int:
        """As `trace`, with steps that a device leaves; 0 ends it."""

class Call:
    """The arguments of a dispatch and of its combines, and the memory that it leaves behind for them.

    Made for so many tokens at most and used again and again, because making it anew costs more than a small dispatch.
    """

    @property
    def positions(self) -> Tensor:
        """int64 [tokens, topk] of the last dispatch: destination rank << 32 | row, or -1."""
    @property
    def weights(self) -> Tensor:
        """float32 [tokens, topk] of the last dispatch, if it kept them."""
    @property
    def counts(self) -> Tensor:
        """int64 [local experts] of the last dispatch."""
    @property
    def epoch(self) -> int:
        """0: nobody waited for the dispatch."""
    @property
    def slot(self) -> int: ...
    @property
    def tokens(self) -> int:
        """Of this rank."""
    @property
    def total(self) -> int:
        """Rows that arrived."""
    layer: int
    """Of the model, counted from 1, for a device; 0: not said."""
    @property
    def dispatch_address(self) -> int: ...
    @property
    def combine_address(self) -> int: ...
    def take(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        kind: int,
        part: int,
        /,
        *,
        keep_weights: bool,
        continues: bool = False,
        row_bytes: int = 0,
    ) -> None:
        """Points the arguments at tensors that stay alive and where they are until the dispatch is done.

        x [tokens, hidden] with dense rows; ids [tokens, topk] contiguous; weights float32 [tokens, topk] contiguous, of
        which the dispatch makes a copy for combine if it is to keep them, else they too have to stay until then.
        A dispatch that `continues` stays in the slot of the one before, as a further round of the same call.
        `row_bytes`, if not 0, are all that is moved of each row, on every rank alike; then x [tokens] may be rows of
        anything that is so long, a multiple of 16.
        """
    def take_routing(self, weights: Tensor | None, positions: Tensor | None, /) -> None:
        """Lets combine read these instead of those of the dispatch: float32 and int64 [tokens, topk], contiguous."""
    def fits_out(self, out: Tensor, /) -> bool:
        """`take_out` of a caller's tensor, if the kernels on the host can write it as it is; else nothing is done."""
    def take_out(self, out: Tensor, /) -> None:
        """Points combine at its result: [tokens, hidden] with dense rows."""
    def dispatch(self) -> int: ...
    def dispatch_send(self) -> int: ...
    def dispatch_receive(self) -> int: ...
    def rejoin(self) -> int: ...
    def combine(self, out: Tensor, /) -> int:
        """`take_out` first."""
    def combine_send(self) -> int: ...
    def combine_receive(self, out: Tensor, /) -> int:
        """`take_out` first."""
    def forget_place(self) -> None:
        """As if nothing had been dispatched: epoch, slot and total are 0."""

class Counters:
    """What an exchange has done, counted by its calls. Beginnings are nanoseconds of `time.perf_counter_ns`."""

    measures_imbalance: bool
    """Whether rows of all ranks are looked at."""

    def __init__(self, ranks: int, /) -> None: ...
    @property
    def rounds(self) -> int:
        """Of both phases."""
    def dispatched(
        self, kind: int, begun_ns: int, tokens: int, rows: int, largest_rows: int, rows_of_all: int, /
    ) -> None:
        """The only dispatch of a call, which began then, has ended."""
    def planned(self, begun_ns: int, rounds: int, /) -> None:
        """The plan of a prefill call that began then is known; its time counts as that of the dispatch."""
    def combined(self, kind: int, begun_ns: int, /) -> None: ...
    def sums(self, kind: int, /) -> tuple[int, ...]:
        """The fields of `PhaseCounts`."""
    def histograms(self, kind: int, /) -> dict[str, tuple[list[float], list[int], float]]:
        """The fields of `Histogram`, by name."""

class Ticket:
    """What combine needs to find the rows of one dispatch again, and how often it has been combined."""

    combines: int
    rejoined: bool

    @property
    def session(self) -> Any: ...
    @property
    def call(self) -> Call: ...
    @property
    def weights(self) -> Tensor:
        """[tokens, topk], kept alive, for combine may read them."""
    @property
    def epoch(self) -> int: ...
    @property
    def total(self) -> int:
        """Rows that arrived."""
    @property
    def rows_needed(self) -> int:
        """Rows that a tensor of results has to have at least."""
    @property
    def at_most(self) -> int:
        """Rows that can have arrived: `total`, but of a dispatch that nobody waited for as many as may come."""
    @property
    def kind(self) -> int: ...
    @property
    def part(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def tokens(self) -> int: ...

class Slots:
    """The slots of one rank's window: whose rows lie in each half, and what is handed out of them."""

    def __init__(
        self,
        session: object,
        counters: Counters,
        make_call: Callable[[], Call],
        rows_type: type[ExpertRows],
        renew: Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor | None, Tensor]],
        views: tuple[tuple[Tensor, Tensor | None, Tensor], ...],
        capacity: int,
        expert_rows: int,
        /,
    ) -> None:
        """views [slots * parts]: rows, scales and results of each slot and of its halves; `renew` makes such a view
        anew, without the history that was written into it."""
    def free_call(self) -> Call:
        """One that holds no rows."""
    def dispatch_fitting(self, x: Tensor, ids: Tensor, weights: Tensor, phase: str, /) -> ExpertRows | int | None:
        """Dispatches into a whole slot, with weights that are kept, if the kernels on the host take the tensors as they
        are. None: they do not, or there is no such phase, and nothing is done; a number: the `codes.Result` of a
        failure."""
    def hand_out(
        self,
        call: Call,
        weights: Tensor,
        kind: int,
        part: int,
        begun_ns: int,
        at_most: int,
        planned_rows: int,
        first_round: bool,
        /,
    ) -> ExpertRows:
        """The rows of a call that has just been dispatched, which hold their slot from now on. If nobody waited for it:
        `at_most` as in its ticket, and as many rows as were planned, which are counted."""
    def combine_fitting(self, ticket: Ticket, out: Tensor, /) -> int | None:
        """The first combine of results that are in place, into what the kernels on the host take as it is. None: it is
        not that, and nothing is done; else its `codes.Result`."""
    def combined(self, ticket: Ticket, begun_ns: int, waited: bool, /) -> None:
        """A combine that began then has ended, or was only put on a stream."""
    def holds(self, ticket: Ticket, /) -> bool:
        """Whether the rows are still there."""
