"""When what replays found is fetched, and that no token of theirs is read before. No NPU has run this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from sglang_ascend_moe.errors import PeerLost
from sglang_ascend_moe.graph_capture.runners import replay_verdicts
from sglang_ascend_moe.serving.worker import layer


class WatchedExchange:
    """Writes down what is asked of it; `fault` is what its replays found."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fault: PeerLost | None = None
        self.unverified = False

    def note_replay(self) -> None:
        self.unverified = True

    def fetch_verdicts(self) -> int:
        self.asked.append("fetch")
        self.unverified = False
        return 5

    def raise_fetched(self, place: int) -> None:
        assert place == 5
        self.asked.append("look")
        if self.fault is not None:
            raise self.fault

    def check_replays(self) -> None:
        self.asked.append("wait")
        self.unverified = False
        if self.fault is not None:
            raise self.fault


class Result:
    """As SGLang's `GenerationBatchResult`, with an event that says when it is waited for."""

    def __init__(self, asked: list[str], *, overlap: bool = True) -> None:
        self._asked = asked
        self.copy_done = SimpleNamespace(synchronize=lambda: asked.append("event"), query=lambda: 1)
        if not overlap:
            self.copy_done = None

    def copy_to_cpu(self) -> None:
        self._asked.append("tokens copied")


@pytest.fixture
def exchange(monkeypatch) -> WatchedExchange:
    watched = WatchedExchange()
    monkeypatch.setattr(layer, "exchanges", lambda: [watched])
    return watched


OVERLAPPING, WITHOUT_OVERLAP = SimpleNamespace(enable_overlap=True), SimpleNamespace(enable_overlap=False)


def copy(result: Result) -> None:
    replay_verdicts.copy_with_tokens(Result.copy_to_cpu, result)


def test_what_a_replay_found_is_fetched_before_the_event_and_looked_at_behind_it(exchange):
    result = Result(exchange.asked)
    exchange.note_replay()
    copy(result)
    assert exchange.asked == ["fetch", "tokens copied"]
    assert result.copy_done.query() is True
    replay_verdicts.check_uncopied(OVERLAPPING, None, result)
    result.copy_done.synchronize()
    assert exchange.asked == ["fetch", "tokens copied", "event", "look"]


def test_tokens_of_a_failed_step_are_not_read(exchange):
    exchange.fault = PeerLost("rank 1 has died", rank=1)
    result = Result(exchange.asked)
    exchange.note_replay()
    copy(result)
    with pytest.raises(PeerLost, match="rank 1"):
        result.copy_done.synchronize()


def test_a_step_without_replays_is_left_as_it_is(exchange):
    result = Result(exchange.asked)
    before = result.copy_done
    copy(result)
    replay_verdicts.check_uncopied(WITHOUT_OVERLAP, None, result)
    assert result.copy_done is before
    assert exchange.asked == ["tokens copied"]


def test_each_step_is_fetched_once_however_many_replays_it_has(exchange):
    for _ in range(3):
        exchange.note_replay()
    copy(Result(exchange.asked))
    copy(Result(exchange.asked))
    assert exchange.asked == ["fetch", "tokens copied", "tokens copied"]


def test_where_nothing_is_copied_what_was_found_is_waited_for(exchange):
    """As with a batch of no embeddings."""
    exchange.note_replay()
    exchange.fault = PeerLost("rank 1 has died", rank=1)
    with pytest.raises(PeerLost):
        copy(Result(exchange.asked, overlap=False))
    assert exchange.asked == ["fetch", "tokens copied", "wait"]


def test_without_overlap_a_replay_is_waited_for_before_its_tokens_are_read(exchange):
    exchange.fault = PeerLost("rank 1 has died", rank=1)
    exchange.note_replay()
    result = Result(exchange.asked, overlap=False)
    with pytest.raises(PeerLost):
        replay_verdicts.check_uncopied(WITHOUT_OVERLAP, None, result)
    replay_verdicts.check_uncopied(WITHOUT_OVERLAP, None, result)
    assert exchange.asked == ["wait"]


def test_a_step_that_is_sampled_later_is_looked_at_when_its_tokens_are_copied(exchange):
    """With overlap, the result before it is processed in between."""
    exchange.note_replay()
    replay_verdicts.check_uncopied(OVERLAPPING, None, Result(exchange.asked, overlap=False))
    assert exchange.asked == []
    copy(Result(exchange.asked))
    assert exchange.asked == ["fetch", "tokens copied"]


@pytest.mark.parametrize("look", ["uncopied", "handing-on"])
def test_a_stage_looks_on_the_stream_of_its_steps_alone(exchange, monkeypatch, look):
    monkeypatch.setattr(layer, "serving", lambda: SimpleNamespace(stages=2))

    @contextmanager
    def forward_stream() -> Iterator[None]:
        exchange.asked.append("its stream")
        yield
        exchange.asked.append("back")

    scheduler = SimpleNamespace(enable_overlap=False, forward_stream_ctx=forward_stream())
    result = Result(exchange.asked, overlap=False)
    exchange.note_replay()
    copy(result)
    assert exchange.asked == ["tokens copied"]
    if look == "uncopied":
        replay_verdicts.check_uncopied(scheduler, None, result)
    else:
        replay_verdicts.check_before_handing_on(scheduler, {})
    assert exchange.asked == ["tokens copied", "its stream", "wait", "back"]


def test_a_stage_waits_for_its_replays_before_it_hands_anything_on(exchange):
    replay_verdicts.check_before_handing_on(WITHOUT_OVERLAP, {}, async_send=True)
    assert exchange.asked == []
    exchange.note_replay()
    replay_verdicts.check_before_handing_on(WITHOUT_OVERLAP, {}, async_send=True)
    replay_verdicts.check_uncopied(WITHOUT_OVERLAP, None, Result(exchange.asked, overlap=False))
    assert exchange.asked == ["wait"]
    exchange.fault = PeerLost("rank 1 has died", rank=1)
    exchange.note_replay()
    with pytest.raises(PeerLost):
        replay_verdicts.check_before_handing_on(WITHOUT_OVERLAP)
