"""`memcpy`: exactly the payload bytes, copied in large pieces by all ranks at once; the bound for every exchange.

`quantise-memcpy`: the same after the quantiser that an exchange uses; the bound for int8 rows.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.delivery_check import CHUNK_ROWS, Quantised, quantise
from sglang_ascend_moe.launch.bench.drawn_routing import Batch, make_batch
from sglang_ascend_moe.launch.bench.records import Op
from sglang_ascend_moe.launch.bench.row_kernels import STORES, Piece, Shape, Tokens, available_stores, library
from sglang_ascend_moe.launch.bench.shared_memory import RelayMemory
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Variant

BLOCK_BYTES = 1 << 18
"""Of x, copied topk times before the next block: a part of a core's second-level cache."""


class Span(NamedTuple):
    """Rows `token` and following of x, which belong to row `place` and following at `destination`."""

    destination: int
    place: int
    token: int
    rows: int


def block_sequence(case: Case) -> list[int]:
    """Which token each of the tokens * topk rows is that a rank sends."""
    block = max(1, BLOCK_BYTES // (case.hidden * 2))
    return [
        token
        for begin in range(0, case.tokens, block)
        for _ in range(case.topk)
        for token in range(begin, min(begin + block, case.tokens))
    ]


class Memcpy(Variant):
    """As many rows as the routing sends to each rank, but in order, without counts, flags or a sum.

    Dispatch copies x to the other ranks, topk times block by block, so that a block comes out of a near cache after the
    first time, as a row does where an exchange writes it topk times. Combine copies as many results back into as many
    rows as there are tokens, in the same order. Int8 rows are quantised beforehand.
    """

    def __init__(self, case: Case, ranks: Ranks, batch: Batch, memory: RelayMemory, traffic: Tensor) -> None:
        """`traffic` [ranks, experts]: rows that each rank sends to each expert."""
        self.stores = available_stores()
        self._case, self._rank = case, ranks.rank
        self._sent = traffic.view(case.ranks, case.ranks, -1).sum(dim=2)
        most = int(self._sent.sum(dim=0).max())
        quantised = case.dtype == "int8"
        value_bytes = case.hidden if quantised else case.hidden * 2
        rows = memory.offsets["relay"]
        self._offsets = {"rows": rows, "scales": rows + most * value_bytes, "out": memory.offsets["back"]}
        self._shared = memory.shared

        self._pristine = quantise(batch.x) if quantised else None
        self._source = Quantised(*map(torch.clone, self._pristine)) if self._pristine else None
        self._combined = torch.empty(case.tokens, case.hidden, dtype=torch.bfloat16)
        values = self._source.values if self._source else batch.x
        pieces = self._pieces_out(values.data_ptr(), value_bytes, "rows")
        if self._source:
            pieces += self._pieces_out(self._source.scales.data_ptr(), 4, "scales")
        self._pieces: dict[Op, ctypes.Array[Piece]] = {
            "dispatch": (Piece * len(pieces))(*pieces),
            "combine": self._pieces_back(),
        }
        self._store: dict[Op, int] = dict.fromkeys(("dispatch", "combine"), STORES["memcpy"])
        total = int(self._sent[:, self._rank].sum())
        shape = (total, case.hidden)
        self._arrived = Arrived(
            self._shared.view(self._rank, self._offsets["rows"], shape, values.dtype),
            self._shared.view(self._rank, self._offsets["scales"], (total,), torch.float32) if quantised else None,
            self._shared.view(self._rank, self._offsets["out"], shape, torch.bfloat16),
        )

    def use(self, op: Op, store: str) -> None:
        self._store[op] = STORES[store]

    def prepare(self, batch: Batch, pristine: Tensor) -> None:
        super().prepare(batch, pristine)
        if self._source and self._pristine:
            self._source.values.copy_(self._pristine.values)
            self._source.scales.copy_(self._pristine.scales)

    def dispatch(self, batch: Batch) -> None:  # noqa: ARG002 - the pieces say where it lies
        self._copy("dispatch")

    def arrived(self, handle: None) -> Arrived:  # noqa: ARG002
        return self._arrived

    def combine(self, handle: None) -> Tensor:  # noqa: ARG002
        self._copy("combine")
        return self._combined

    def problem(self, case: Case, ranks: Ranks, batch: Batch) -> str | None:
        """Compares all bytes that arrived, and of the results those that were not copied over again."""
        for filled in (self._arrived.rows, self._combined):
            filled.view(torch.uint8).fill_(0xA5)
        _fill_results(ranks.rank, 0, self._arrived.out)
        ranks.barrier.wait()
        self.dispatch(batch)
        self.combine(None)
        ranks.barrier.wait()
        return self._problem_of_rows(case) or self._problem_of_results()

    def _copy(self, op: Op) -> None:
        pieces = self._pieces[op]
        library().bench_copy(self._store[op], pieces, len(pieces))

    def _begin(self, source: int, destination: int) -> int:
        """Where the rows of `source` begin in the memory of `destination`."""
        return int(self._sent[:source, destination].sum())

    def _spans(self) -> list[Span]:
        """The pieces that this rank copies, in order."""
        sequence = block_sequence(self._case)
        spans, position = [], 0
        for destination in range(self._case.ranks):
            place = self._begin(self._rank, destination)
            end = position + int(self._sent[self._rank, destination])
            while position < end:
                rows = 1
                while position + rows < end and sequence[position + rows] == sequence[position] + rows:
                    rows += 1
                spans.append(Span(destination, place, sequence[position], rows))
                place, position = place + rows, position + rows
        return spans

    def _pieces_out(self, source: int, row_bytes: int, region: str) -> list[Piece]:
        return [
            Piece(
                self._shared.addresses[destination] + self._offsets[region] + place * row_bytes,
                source + token * row_bytes,
                rows * row_bytes,
            )
            for destination, place, token, rows in self._spans()
        ]

    def _pieces_back(self) -> ctypes.Array[Piece]:
        row_bytes = self._case.hidden * 2
        pieces = [
            Piece(
                self._combined.data_ptr() + token * row_bytes,
                self._shared.addresses[destination] + self._offsets["out"] + place * row_bytes,
                rows * row_bytes,
            )
            for destination, place, token, rows in self._spans()
        ]
        return (Piece * len(pieces))(*pieces)

    def _problem_of_rows(self, case: Case) -> str | None:
        sequence = torch.tensor(block_sequence(case))
        for source in range(case.ranks):
            x = make_batch(case, source).x
            expected = quantise(x) if case.dtype == "int8" else Quantised(x, torch.empty(0))
            place = self._begin(source, self._rank)
            first = int(self._sent[source, : self._rank].sum())
            for token in sequence[first : first + int(self._sent[source, self._rank])].split(CHUNK_ROWS):
                rows = slice(place, place + len(token))
                if not torch.equal(self._arrived.rows[rows], expected.values[token]):
                    return f"the bytes of rank {source} did not arrive at rank {self._rank}"
                scales = self._arrived.scales
                if scales is not None and not torch.equal(scales[rows], expected.scales[token]):
                    return f"the scales of rank {source} did not arrive at rank {self._rank}"
                place = rows.stop
        return None

    def _problem_of_results(self) -> str | None:
        expected = torch.empty_like(self._combined)
        expected.view(torch.uint8).fill_(0xA5)
        for owner, place, token, count in self._spans():
            _fill_results(owner, place, expected[token : token + count])
        if torch.equal(self._combined.view(torch.int16), expected.view(torch.int16)):
            return None
        return f"the bytes that rank {self._rank} fetched are not those of the results"


def _fill_results(rank: int, first: int, out: Tensor) -> None:
    """Results that are those of `rank`, of its rows from `first` on, and of the column; numbers that bfloat16 has."""
    rows = (torch.arange(first, first + len(out)) * 31 + rank * 101) % 127
    columns = torch.arange(out.shape[1]) % 97
    torch.add(rows[:, None].bfloat16(), columns.bfloat16(), out=out)


class QuantiseMemcpy(Memcpy):
    """As `memcpy`, but the rows that dispatch copies are quantised by it first: all of them, then all are copied."""

    def __init__(self, case: Case, ranks: Ranks, batch: Batch, memory: RelayMemory, traffic: Tensor) -> None:
        """Raises `Unsupported` for rows that are not quantised."""
        super().__init__(case, ranks, batch, memory, traffic)
        if self._source is None:
            raise Unsupported(f"{case.dtype} rows are not quantised: its bound is memcpy")
        self._shape = Shape.of(case, ranks.rank)
        self._tokens = Tokens(case)
        self._tokens.take(batch.x, batch.ids, batch.weights)
        self._quantised = self._source.values.data_ptr(), self._source.scales.data_ptr()

    def prepare(self, batch: Batch, pristine: Tensor) -> None:
        Variant.prepare(self, batch, pristine)

    def dispatch(self, batch: Batch) -> None:
        library().bench_quantise(ctypes.byref(self._shape), self._tokens.reference, *self._quantised)
        super().dispatch(batch)
