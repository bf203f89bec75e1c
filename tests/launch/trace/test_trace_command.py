"""`ascend-moe trace` puts the steps of all ranks on one clock, and says who was slow, where, and how uneven layers
are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.exchange.control.machine import Machine
from sglang_ascend_moe.exchange.control.trace_file import TraceFile
from sglang_ascend_moe.launch.trace.chrome_events import chrome_events
from sglang_ascend_moe.launch.trace.timeline import Span, Timeline, read_timelines
from sglang_ascend_moe.launch.trace.trace_command import main
from sglang_ascend_moe.launch.trace.trace_summary import rows_of_layers, summary, waits_for
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK
from tests.exchange.control.test_trace_file import rewritten
from tests.exchange.harmed_ranks import SCENARIO, small_window
from tests.exchange.pool import Pool, Rank
from tests.exchange.reference import scale_by_expert
from tests.exchange.surface import compute, open_exchange

RANKS, SLOW, LAYERS = 3, 1, (2, 5)
MOST_PATIENCE_S = 120.0


def run_layers(rank: Rank, folder: str, phase: str, options: dict[str, Any]) -> dict[int, list[list[int]]]:
    """Runs two layers twice, traced; returns for each layer the rows that every exchange brought to this rank."""
    received: dict[int, list[int]] = {layer: [] for layer in LAYERS}
    with open_exchange("windows", rank, SCENARIO, **options) as exchange:
        exchange.trace(folder)
        for layer in LAYERS * 2:

            def experts(rows: Any, layer: int = layer) -> None:
                rows.ticket.session.trace_layer(rows.ticket.call, layer)
                received[layer].append(int(rows.counts.sum()))
                compute(rows, scale_by_expert, rank)

            # The second layer has the tokens of the other half of the ranks only.
            x, ids, weights = SCENARIO.inputs(rank.size)[rank.rank]
            kept = len(x) if layer == LAYERS[0] or rank.rank else 0
            exchange.run(x[:kept], ids[:kept], weights[:kept], experts, phase=phase)
    return received


def timeline_of(folder: Path) -> Timeline:
    (timeline,) = read_timelines(folder)
    return timeline


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_rows_of_each_layer_are_those_that_its_experts_saw(make_pool, tmp_path, phase):
    received = make_pool(RANKS).run(run_layers, str(tmp_path), phase, {})
    layers = rows_of_layers(timeline_of(tmp_path))
    assert [one.layer for one in layers] == list(LAYERS)
    for one in layers:
        seen = [of_rank[one.layer] for of_rank in received]
        assert one.exchanges == 2
        assert one.rows == [sum(rows) for rows in seen]
        assert one.largest_rows == sum(map(max, zip(*seen, strict=True)))
        assert one.imbalance == one.largest_rows * RANKS / sum(one.rows)
    said = summary(timeline_of(tmp_path))
    assert f"layer 5: {layers[1].imbalance:.2f} in 2 exchanges" in said
    assert "3 ranks, 36 experts" in said


def test_a_plan_and_all_rounds_are_those_of_their_layer(make_pool, tmp_path):
    make_pool(RANKS).run(run_rounds, str(tmp_path))
    timeline = timeline_of(tmp_path)
    for spans in timeline.spans.values():
        assert {span.layer for span in spans} == set(LAYERS)
        assert {span.kind for span in spans} == {Kind.PLAN, Kind.PREFILL}
    rounds = {span.epoch for span in timeline.spans[0] if span.step == Step.EXPERTS}
    assert len(rounds) > 2 * len(LAYERS)
    # A plan is no exchange of rows.
    assert f"; {len(rounds)} exchanges in" in summary(timeline)
    place_us = sum(span.end_ns - span.begin_ns for span in timeline.spans[0] if span.step == Step.PLACE) / 1e3
    lines = map(str.split, summary(timeline).splitlines())
    names, (_, _, *means) = (words for words in lines if words[0] == "announce" or words[:2] == ["rank", "0"])
    assert means[names.index("place")] == f"{place_us / len(rounds):,.1f}"
    # Experts of a round run while the next one's rows come: never two spans at once on one track.
    for track in tracks(list(chrome_events([timeline]))).values():
        for before, after in pairwise(track):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-3


def run_rounds(rank: Rank, folder: str) -> None:
    run_layers(rank, folder, "prefill", {**small_window(rank), "workers": 2})


def tracks(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """The spans of each track, in order."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        found.setdefault((event["pid"], event["tid"]), []).append(event)
    return found


def be_slow(rank: Rank, folder: str) -> None:
    with open_exchange("windows", rank, SCENARIO, timeout_s=2 * MOST_PATIENCE_S) as exchange:
        exchange.trace(folder)

        def experts(rows: Any) -> None:
            compute(rows, scale_by_expert, rank)
            if rank.rank == SLOW:
                rank.wait_for_parent()

        exchange.run(*SCENARIO.inputs(rank.size)[rank.rank], experts)


def await_long_waits(folder: Path) -> None:
    """Until every other rank has waited for the slow one, at step done, for longer than everything took before."""
    until = time.monotonic() + MOST_PATIENCE_S
    others = set(range(RANKS)) - {SLOW}
    while time.monotonic() < until:
        paths = list(folder.glob("*.trace"))
        timeline = timeline_of(folder) if len(paths) == RANKS else None
        if timeline is not None and all(waits_long(timeline.spans[rank]) for rank in others):
            return
    raise AssertionError("the others do not wait")


def waits_long(spans: list[Span]) -> bool:
    if not spans or spans[-1].step != Step.DONE or spans[-1].has_ended:
        return False
    return time.monotonic_ns() - spans[-1].begin_ns > 10 * (spans[-1].begin_ns - spans[0].begin_ns)


@pytest.fixture
def slowed(make_pool: Callable[[int], Pool], tmp_path: Path) -> Path:
    """A folder with the traces of ranks that one of them held up."""
    pool = make_pool(RANKS)
    pool.start(be_slow, str(tmp_path))
    await_long_waits(tmp_path)
    pool.release(SLOW)
    pool.collect()
    return tmp_path


def test_the_slow_rank_is_named_and_where_it_was_waited_for(slowed, capsys):
    timeline = timeline_of(slowed)
    waits = waits_for(timeline)
    assert max(waits, key=lambda rank: waits[rank]) == SLOW
    assert main([str(slowed)]) == OK
    said = capsys.readouterr().out
    assert f"slowest: rank {SLOW}, for which each of the others waited" in said
    assert "most at step done" in said
    assert "calls without a layer" in said

    events = json.loads((slowed / "timeline.json").read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {f"rank {rank}" for rank in range(RANKS)}
    held_up = [event for event in events if event["ph"] == "X" and event["name"] == "done" and event["pid"] != SLOW]
    assert [event["args"]["waited_for"] for event in held_up] == [SLOW] * (RANKS - 1)
    assert all(0 < event["args"]["waited_us"] <= event["dur"] for event in held_up)
    # Each arrow begins and ends within spans.
    arrows = [event for event in events if event["ph"] in "sf"]
    begun = {event["id"] for event in arrows if event["ph"] == "s"}
    assert begun == {event["id"] for event in arrows if event["ph"] == "f"}
    assert len(begun) * 2 == len(arrows) >= 2 * (RANKS - 1)
    for arrow in arrows:
        assert any(
            span["ts"] - 1e-3 <= arrow["ts"] <= span["ts"] + span["dur"] + 1e-3
            for span in tracks(events)[arrow["pid"], arrow["tid"]]
        )


def test_clocks_of_two_machines_are_put_together_by_the_time_of_day(slowed):
    before = timeline_of(slowed)
    assert before.one_clock
    shift_ns = 10**12
    (path,) = slowed.glob(f"*-rank{SLOW}.trace")
    machine = Machine(bytes(16), bytes(16), "another")
    header = before.header
    # Its clock began later by as much as it is shown to be behind.
    rewritten(path, machine=machine, monotonic_ns=header.monotonic_ns, realtime_ns=header.realtime_ns + shift_ns)
    # Ranks of one machine have one clock, though that of the day was set between their beginnings.
    for rank, set_ns in ((0, 0), (2, 10**9)):
        (other,) = slowed.glob(f"*-rank{rank}.trace")
        rewritten(other, monotonic_ns=header.monotonic_ns, realtime_ns=header.realtime_ns + set_ns)
    after = timeline_of(slowed)
    assert not after.one_clock
    assert "several machines" in summary(after)
    apart = {rank: after.spans[rank][0].begin_ns - before.spans[rank][0].begin_ns for rank in range(RANKS)}
    assert apart[SLOW] - apart[0] == shift_ns
    assert apart[2] == apart[0]

    # A session of one machine among those of several is on the same clock, and says nothing of others.
    for rank in (0, 2):
        (path,) = slowed.glob(f"{header.session.hex()[:12]}-rank{rank}.trace")
        copied = path.with_name(f"another-rank{rank}.trace")
        copied.write_bytes(path.read_bytes())
        rewritten(copied, session=bytes(16))
    sessions = {one.header.session: one for one in read_timelines(slowed)}
    assert [sessions[name].one_clock for name in (header.session, bytes(16))] == [False, True]
    assert len({one.spans[0][0].begin_ns for one in sessions.values()}) == 1


def test_a_session_in_which_nothing_happened_does_not_move_the_others(slowed):
    TraceFile(slowed, bytes(16), 0, timeline_of(slowed).header.parameters)
    timelines = read_timelines(slowed)
    assert len(timelines) == 2
    assert min(event["ts"] for event in chrome_events(timelines) if event["ph"] == "X") == 0


def test_a_rank_that_left_no_file_is_named(slowed, capsys):
    for path in slowed.glob("*-rank2.trace"):
        path.unlink()
    assert main([str(slowed), "--json", str(slowed / "other.json")]) == OK
    assert "rank 2 left no file" in capsys.readouterr().out
    assert (slowed / "other.json").is_file()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no traces; ranks write them with --ascend-moe-trace"),
        ({"x.trace": b"no"}, "x.trace is no trace of this release"),
    ],
)
def test_a_folder_without_traces_and_a_foreign_file_are_said_to_be_so(tmp_path, capsys, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path)]) == CHECK_FAILED
    assert said in capsys.readouterr().err


def test_a_timeline_that_cannot_be_written_is_refused(slowed, capsys):
    assert main([str(slowed), "--json", str(slowed / "no" / "such.json")]) == CHECK_FAILED
    assert "--json" in capsys.readouterr().err
