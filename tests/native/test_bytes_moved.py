"""How often each byte is touched: a row is written once where its expert reads it, a result is read once where its
expert wrote it, and there is nothing in between."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.native.library import use_library
from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window
from tests.exchange.pool import Rank
from tests.exchange.scenario import Scenario
from tests.exchange.surface import open_exchange

from .lone_rank import LoneRank

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTER = Path(__file__).with_name("count_accesses.cpp")
FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden")
INCLUDES = (f"-I{REPOSITORY / 'kernels' / 'include'}", f"-I{REPOSITORY / 'kernels' / 'host'}")


@pytest.fixture(scope="module")
def counting_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host kernels, compiled so that every access is counted."""
    folder = tmp_path_factory.mktemp("counting")
    compiler = os.environ.get("CXX", "g++")
    sources = [source for source in (REPOSITORY / "kernels" / "host").glob("*.cpp") if "bench" not in source.name]
    objects = []
    for source in (*sources, COUNTER):
        objects.append(str(folder / f"{source.stem}.o"))
        counted = () if source == COUNTER else ("-fsanitize=thread",)
        subprocess.run(
            [compiler, *FLAGS, *counted, *INCLUDES, "-c", str(source), "-o", objects[-1]], check=True, timeout=120
        )
    library = folder / "counting.so"
    wrapped = "-Wl,--wrap=memcpy,--wrap=memset,--wrap=memmove"
    subprocess.run(
        [compiler, "-shared", "-pthread", wrapped, "-Wl,-z,defs", *objects, "-o", str(library)], check=True, timeout=120
    )
    return library


class Counts:
    """How often this rank read and wrote each byte of a piece of memory."""

    def __init__(self, library: ctypes.CDLL, address: int, size: int) -> None:
        self.reads = torch.zeros(size, dtype=torch.uint8)
        self.writes = torch.zeros(size, dtype=torch.uint8)
        library.count_in(
            *map(ctypes.c_uint64, (address, size)),
            *map(ctypes.c_void_p, (self.reads.data_ptr(), self.writes.data_ptr())),
        )

    @classmethod
    def of(cls, library: ctypes.CDLL, tensor: Tensor) -> Counts:
        return cls(library, tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def take(self) -> tuple[Tensor, Tensor]:
        """Reads and writes so far; counts from zero again."""
        taken = self.reads.clone(), self.writes.clone()
        self.reads.zero_()
        self.writes.zero_()
        return taken


def move_counted(rank: Rank, library_path: str, scenario: Scenario, options: dict) -> dict[str, list]:
    """One dispatch and one combine of this rank; [rank] of the lists: what it did in the window of that rank."""
    use_library(library_path)
    library = ctypes.CDLL(library_path)
    x, ids, weights = scenario.inputs(rank.size)[rank.rank]
    combined = torch.empty_like(x)
    try:
        with open_exchange("windows", rank, scenario, **options) as exchange:
            regions = {
                name: [region(exchange, library, peer, name) for peer in range(rank.size)] for name in ("rows", "out")
            }
            own = {"x": Counts.of(library, x), "result": Counts.of(library, combined)}
            rows = exchange.dispatch(x, ids, weights)
            seen = {f"dispatch {name}": [counts.take() for counts in group] for name, group in regions.items()}
            seen |= {f"dispatch {name}": [counts.take()] for name, counts in own.items()}
            rows.out.zero_()
            exchange.combine(rows.out, rows, out=combined)
            seen |= {f"combine {name}": [counts.take() for counts in group] for name, group in regions.items()}
            seen |= {f"combine {name}": [counts.take()] for name, counts in own.items()}
            seen["received"] = [int(rows.counts.sum())]
            seen["routed"] = [(ids >= 0).any(dim=1)]
    finally:
        library.count_nowhere()
        use_library(None)
    return seen


def region(exchange: Exchange, library: ctypes.CDLL, peer: int, name: str) -> Counts:
    """The rows or results of a window."""
    layout = exchange.layout
    begin = exchange._steps._windows[peer].address + getattr(layout.offsets, name)
    row_bytes = layout.parameters.row_bytes if name == "rows" else layout.parameters.out_row_bytes
    return Counts(library, begin, layout.capacity * row_bytes)


SCENARIOS = {
    "vectors": (Scenario(tokens=(9, 0, 14), experts_per_rank=4, topk=5, hidden=512, routing="sparse"), {}),
    "odd-rows": (Scenario(tokens=(9, 3, 14), experts_per_rank=4, topk=5, hidden=80, routing="sparse"), {}),
    "threads": (Scenario(tokens=(90, 70), experts_per_rank=4, topk=4, hidden=2048), {"workers": 2}),
    "int8": (Scenario(tokens=(9, 3, 14), experts_per_rank=4, topk=5, hidden=512, routing="sparse"), {"quant": "int8"}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_byte_of_a_row_is_written_once_and_each_of_a_result_read_once(fresh_pool, counting_library, name):
    scenario, options = SCENARIOS[name]
    ranks = len(scenario.tokens)
    pool = fresh_pool(ranks)
    seen = pool.run(move_counted, str(counting_library), scenario, options, deadline_s=120.0)
    row_bytes = scenario.hidden * (1 if options.get("quant") else 2)
    for owner in range(ranks):
        received = seen[owner]["received"][0]
        assert received > 0
        # By all ranks together.
        totals = {
            what: [sum(seen[rank][what][owner][way].int() for rank in range(ranks)) for way in (0, 1)]
            for what in ("dispatch rows", "dispatch out", "combine rows", "combine out")
        }
        require(totals["dispatch rows"], received * row_bytes, reads=0, writes=1)
        require(totals["dispatch out"], 0, reads=0, writes=0)
        require(totals["combine rows"], 0, reads=0, writes=0)
        require(totals["combine out"], received * scenario.hidden * 2, reads=1, writes=0)

        # A row to be quantised is read a second time out of the nearest cache, after its maximum is known.
        reads_of_x = 2 if options.get("quant") else 1
        routed = seen[owner]["routed"][0].repeat_interleave(scenario.hidden * 2)
        reads, writes = seen[owner]["dispatch x"][0]
        assert torch.equal(reads, reads_of_x * routed.to(torch.uint8))
        assert not writes.any()
        reads, writes = seen[owner]["combine result"][0]
        assert not reads.any()
        assert (writes == 1).all()


def require(counts: list[Tensor], used: int, *, reads: int, writes: int) -> None:
    """Every one of the first `used` bytes so often, and none of the others."""
    for seen, times in zip(counts, (reads, writes), strict=True):
        assert (seen[:used] == times).all()
        assert not seen[used:].any()


def accesses(library_path: Path, counts: str, ranks: int, experts: int) -> int:
    """Of one rank in a dispatch and a combine that move no row and wait for nobody."""
    layout = plan_window(
        ExchangeParameters(ranks=ranks, num_experts=experts, hidden=16, max_tokens=1, topk=1, counts=counts)
    )
    use_library(str(library_path))
    library = ctypes.CDLL(str(library_path))
    library.take_accesses.restype = ctypes.c_uint64
    try:
        rank = LoneRank(layout)
        library.take_accesses()
        rank.exchange()
        return library.take_accesses()
    finally:
        use_library(None)


def test_where_places_are_granted_a_rank_touches_memory_as_often_as_there_are_ranks_and_experts(counting_library):
    granted, known = (
        {
            (ranks, experts): accesses(counting_library, counts, ranks, experts)
            for ranks, experts in ((96, 96), (192, 192), (384, 384), (96, 192), (96, 384))
        }
        for counts in ("grants", "matrix")
    )
    # On a straight line over the ranks, and over the experts of 96 ranks.
    for one, two, four in (((96, 96), (192, 192), (384, 384)), ((96, 96), (96, 192), (96, 384))):
        added, as_much_again = granted[two] - granted[one], granted[four] - granted[two]
        assert 1.9 * added < as_much_again < 2.1 * added
    assert known[384, 384] - known[192, 192] > 3.5 * (known[192, 192] - known[96, 96])
