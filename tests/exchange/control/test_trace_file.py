"""Steps are written into a file of fixed size that can be read at any time, also when its process was killed."""

from __future__ import annotations

import re
import signal
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.trace_file import FILE_SUFFIX, TraceFile, TraceHeader, read_trace
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.windows.layout import exchange_parameters
from tests.exchange.harmed_ranks import SCENARIO, call, harm_at
from tests.exchange.pool import Rank
from tests.exchange.surface import open_exchange

SESSION = bytes(range(16))
PARAMETERS = exchange_parameters(ranks=3, **SCENARIO.options(3))
DISPATCH = [Step.ANNOUNCE, Step.COUNTS, Step.PLACE, Step.ARRIVALS, Step.EXPERTS]
CALLED = [*DISPATCH, Step.DONE, Step.REDUCE]
KILLED = 1


def trace_calls(rank: Rank, folder: str, calls: list[str]) -> int:
    """Returns the rows that this rank placed in all."""
    with open_exchange("windows", rank, SCENARIO, workers=1) as exchange:
        call(exchange, "decode", rank)
        exchange.trace(folder)
        for how in calls:
            call(exchange, how, rank)
        exchange.trace(None)
        call(exchange, "decode", rank)
    return SCENARIO.topk * len(SCENARIO.inputs(rank.size)[rank.rank].x)


@pytest.mark.parametrize(
    ("how", "steps", "kinds"),
    [
        ("decode", CALLED, [Kind.DECODE]),
        ("prepared", CALLED, [Kind.DECODE]),
        ("run-prefill", [Step.ANNOUNCE, Step.COUNTS, *CALLED], [Kind.PLAN, Kind.PREFILL]),
    ],
)
def test_each_step_of_each_call_is_written_down_and_no_other(fresh_pool, tmp_path, how, steps, kinds):
    placed = fresh_pool(3).run(trace_calls, str(tmp_path), [how, how])
    traces = {trace.header.rank: trace for trace in map(read_trace, tmp_path.iterdir())}
    assert sorted(traces) == [0, 1, 2]
    for rank, trace in traces.items():
        assert [event.step for event in trace.events] == steps * 2
        assert [event.kind for event in trace.events if event.step == Step.ANNOUNCE] == kinds * 2
        assert (trace.lost, trace.header.stage) == (0, None)
        assert [event.rows for event in trace.events if event.step == Step.PLACE] == [placed[rank]] * 2
        assert {event.bytes for event in trace.events if event.step == Step.PLACE} == {
            placed[rank] * PARAMETERS.row_bytes
        }
        times = [(event.begin_ns, event.end_ns) for event in trace.events if event.step != Step.EXPERTS]
        assert times == sorted(times)
        assert all(begin <= end for begin, end in times)
        assert {event.end_ns for event in trace.events if event.step == Step.EXPERTS} == {0}
    received = [sum(event.rows for event in trace.events if event.step == Step.EXPERTS) for trace in traces.values()]
    assert sum(received) == 2 * sum(placed)


def trace_into_a_small_ring(rank: Rank, folder: str) -> tuple[int, int]:
    """Returns the first epoch and the last that were written down."""
    with open_exchange("windows", rank, SCENARIO) as exchange:
        ring = TraceFile(Path(folder), SESSION, rank.rank, exchange.parameters, capacity=2 * len(CALLED))
        exchange._steps.session.trace(lambda: ring)
        begin = exchange.epoch + 1
        for _ in range(9):
            call(exchange, "decode", rank)
        return begin, exchange.epoch


def test_the_oldest_steps_are_overwritten_and_the_file_does_not_grow(fresh_pool, tmp_path):
    (_, last), *_ = fresh_pool(3).run(trace_into_a_small_ring, str(tmp_path))
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {4096 + 64 + 2 * len(CALLED) * 64}
    for trace in map(read_trace, tmp_path.iterdir()):
        assert trace.lost == 7 * len(CALLED)
        assert [(event.epoch, event.step) for event in trace.events] == [
            (epoch, step) for epoch in (last - 1, last) for step in CALLED
        ]


def be_killed(rank: Rank, folder: str) -> None:
    exchange = open_exchange("windows", rank, SCENARIO)
    exchange.trace(folder)
    if rank.rank == KILLED:
        exchange.watch_steps(harm_at(Step.PLACE, signal.SIGKILL))
    with pytest.raises(Exception, match=f"rank {KILLED} has died"):
        call(exchange, "decode", rank)


def test_what_a_killed_rank_wrote_can_be_read_up_to_the_step_in_which_it_was(fresh_pool, tmp_path):
    pool = fresh_pool(3)
    pool.start(be_killed, str(tmp_path))
    pool.collect(dead={KILLED})
    (path,) = tmp_path.glob(f"*-rank{KILLED}{FILE_SUFFIX}")
    events = read_trace(path).events
    assert [event.step for event in events] == [Step.ANNOUNCE, Step.COUNTS, Step.PLACE]
    assert [event.end_ns > 0 for event in events] == [True, True, False]


def refuse_a_folder(rank: Rank, folder: str) -> None:
    with (
        open_exchange("windows", rank, SCENARIO) as exchange,
        pytest.raises(InvalidInput, match=re.escape("(--ascend-moe-trace)")),
    ):
        exchange.trace(folder)


def test_a_folder_that_cannot_be_made_is_refused(fresh_pool, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    fresh_pool(2).run(refuse_a_folder, str(blocker / "folder"))


def test_a_file_that_there_is_no_room_for_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)
    with pytest.raises(InvalidInput, match=r"No space left on device.*bytes left for each rank"):
        TraceFile(tmp_path, SESSION, 0, PARAMETERS)
    assert list(tmp_path.iterdir()) == []


def rewritten(path: Path, **fields: Any) -> None:
    """Another header in a trace."""
    data = bytearray(path.read_bytes())
    header = msgspec.msgpack.decode(data[4 : 4 + int.from_bytes(data[:4], "little")], type=TraceHeader)
    block = msgspec.msgpack.encode(msgspec.structs.replace(header, **fields))
    data[: 4 + len(block)] = len(block).to_bytes(4, "little") + block
    path.write_bytes(data)


def with_events(path: Path, *events: tuple[int, ...]) -> None:
    """Other events in a trace."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 4096 + 8, len(events))
    for place, event in enumerate(events):
        struct.pack_into("<6Q2i2I", data, 4096 + 64 + 64 * place, *event)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: rewritten(path, release="0.0.9"), "was written by release 0.0.9, this is"),
        (lambda path: rewritten(path, protocol=1), "speaks protocol 1"),
        (lambda path: path.write_bytes(b""), "is no trace of this release"),
        (lambda path: path.write_bytes(b"not a trace at all" * 999), "is no trace of this release"),
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), "give the whole file"),
        (lambda path: path.write_bytes(path.read_bytes()[:4100]), "give the whole file"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: with_events(path, (1, 2, 1, 0, 0, 0, -1, -1, 99, 0)), "no rank writes"),
        (lambda path: with_events(path, (1, 2, 1, 0, 0, 0, 3, -1, 1, 1)), "no rank writes"),
    ],
    ids=["release", "protocol", "empty", "foreign", "cut", "cut-in-ring", "folder", "step", "rank"],
)
def test_a_file_that_is_no_trace_is_named(tmp_path, harm, said):
    TraceFile(tmp_path, SESSION, 0, PARAMETERS, capacity=8)
    (path,) = tmp_path.iterdir()
    assert read_trace(path).events == []
    harm(path)
    with pytest.raises(ProtocolMismatch, match=f"{re.escape(path.name)}.*{said}"):
        read_trace(path)


def test_a_place_that_was_taken_and_not_written_is_left_out(tmp_path):
    TraceFile(tmp_path, SESSION, 0, PARAMETERS, capacity=2)
    (path,) = tmp_path.iterdir()
    begun = (9, 0, 3, 0, 0, 0, -1, -1, int(Step.ANNOUNCE), 1)
    # In the place of the one that is missing lies what was there a turn before.
    with_events(path, begun, (5, 6, 2, 0, 0, 0, -1, -1, int(Step.REDUCE), 1))
    assert [event.epoch for event in read_trace(path).events] == [3]
