"""The stand-in for `torch.npu` breaks where a real capture would, so that what passes over it means something."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.windows.memfd import create_window
from tests.graph_capture import npu_stand_in
from tests.graph_capture.npu_stand_in import CaptureBroken
from tests.graph_capture.refused_steps import LAYOUT


@pytest.fixture
def npu() -> Iterator[Any]:
    with npu_stand_in.in_place_of_torch_npu() as module:
        yield module


def captured(npu: Any, step: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    graph = npu.NPUGraph()
    with npu.graph(graph, pool=npu.graph_pool_handle(), stream=npu.Stream(), **options):
        result = step()
    return graph, result


def test_a_replay_computes_on_what_lies_at_the_captured_addresses(npu):
    x, state = torch.arange(6.0).view(2, 3), torch.zeros(2, 3)

    def step() -> torch.Tensor:
        state.add_(x)
        constant = torch.tensor([1.0, 2.0, 3.0])
        constant += x[0]
        return constant + (x.t() @ x).softmax(dim=-1)[1:] + torch.zeros(3)

    graph, result = captured(npu, step)
    address = result.data_ptr()
    x.mul_(2)
    state.zero_()
    expected = step().clone()
    graph.replay()
    state.zero_()
    graph.replay()
    assert (result.data_ptr(), torch.equal(result, expected), torch.equal(state, x)) == (address, True, True)


def test_a_capture_is_seen_while_it_runs_and_ends_with_an_error(npu):
    seen = []
    captured(npu, lambda: seen.append(npu.is_current_stream_capturing()))
    with pytest.raises(ZeroDivisionError):
        captured(npu, lambda: 1 / 0)
    assert (seen, npu.is_current_stream_capturing()) == ([True], False)


BREAKING: dict[str, Callable[[Any], Any]] = {
    "synchronize": lambda npu: npu.synchronize(),
    "event": lambda npu: npu.Event().synchronize(),
    "item": lambda _: torch.ones(1).item(),
    "tolist": lambda _: torch.ones(1).tolist(),
    "cpu": lambda _: torch.ones(1).cpu(),
    "condition": lambda _: bool(torch.ones(1)),
    "nonzero": lambda _: torch.ones(1).nonzero(),
    "window": lambda _: os.close(create_window(LAYOUT)),
    "capture in a capture": lambda npu: captured(npu, lambda: None),
    "replay": lambda npu: npu.NPUGraph().replay(),
}


@pytest.mark.parametrize("step", BREAKING.values(), ids=BREAKING)
def test_a_capture_breaks_at_what_the_device_forbids(npu, step: Callable[[Any], Any]):
    with pytest.raises(CaptureBroken):
        captured(npu, lambda: step(npu))
    assert not npu.is_current_stream_capturing()


def test_a_capture_breaks_at_a_collective_of_the_host(npu, tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with pytest.raises(CaptureBroken, match="allreduce"):
            captured(npu, lambda: dist.all_reduce(torch.ones(1)))
    finally:
        dist.destroy_process_group()


def test_a_replay_breaks_when_a_tensor_it_reads_is_gone(npu):
    held = [torch.ones(3)]
    graph, _ = captured(npu, lambda: held[0] + 1)
    graph.replay()
    held.clear()
    with pytest.raises(CaptureBroken, match="whose tensor is gone"):
        graph.replay()


def test_an_update_needs_a_capture_that_was_made_for_it_and_passes_over_unknown_keys(npu, monkeypatch):
    monkeypatch.setattr(npu_stand_in, "HANDLED", {"full"})
    graph, _ = captured(npu, lambda: torch.full((2,), fill_value=1.0))
    with pytest.raises(RuntimeError, match="auto_dispatch_capture=True"):
        graph.update([{"fill_value": 2.0}])
    graph, result = captured(npu, lambda: torch.full((2,), 1.0, dtype=torch.float32), auto_dispatch_capture=True)
    graph.update(cpu_update_input=[{"dtype": torch.float64, "unknown": 1}])
    graph.update(cpu_update_input=[{"dtype": torch.float32}])
    graph.replay()
    assert result.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="1 operators need to be updated, 2 updates came"):
        graph.update([{}, {}])


def test_a_replay_waits_for_the_update_of_an_operator_that_is_updated(npu, monkeypatch):
    monkeypatch.setattr(npu_stand_in, "HANDLED", {"full"})
    monkeypatch.setattr(npu_stand_in, "UPDATE_DEADLINE_S", 0.0)
    graph, _ = captured(npu, lambda: torch.full((2,), 1.0), auto_dispatch_capture=True)
    with pytest.raises(CaptureBroken, match="update that nobody makes"):
        graph.replay()
