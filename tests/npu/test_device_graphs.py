"""`torch.npu.NPUGraph` of the emulated NPU replays what was captured, and breaks where a capture would on a device."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from sglang_ascend_moe.graph_capture.runners import update_fence
from tests.npu import emulated
from tests.npu.device import graphs
from tests.npu.device.library import native
from tests.npu.test_device import counted

OnDevice = Callable[..., Any]
LATE = emulated.SEED_WHEN_AWAITED
SEEDS = (emulated.SEED_AT_ONCE, LATE, 1, 2, 3)


def captured(step: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, pool=torch.npu.graph_pool_handle(), stream=torch.npu.Stream(), **options):
        result = step()
    return graph, result


def replay_in_place() -> list[Any]:
    x, state = torch.arange(6.0, device="npu").view(2, 3), torch.zeros(2, 3, device="npu")

    def step() -> torch.Tensor:
        state.add_(x)
        return (x.t() @ x).softmax(dim=-1)[1:] + torch.zeros(3, device="npu")

    graph, result = captured(step)
    address = result.data_ptr()
    x.mul_(2)
    state.zero_()
    expected = step()
    state.zero_()
    since = native().counters()
    graph.replay()
    done = counted(since)
    state.zero_()
    graph.replay()
    return [
        result.data_ptr() == address, torch.equal(result, expected), torch.equal(state, x),
        {"allocation", "host synchronisation", "copy to the host", "copy from the host"} & done.keys(),
        done["aten::mm.out"][0],
    ]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replay_computes_on_what_lies_at_the_captured_addresses(on_device: OnDevice, seed: int):
    assert on_device(replay_in_place, seed=seed) == [True, True, True, set(), 1]


def capture_state() -> list[Any]:
    seen = []
    x = torch.zeros(2, device="npu")
    captured(lambda: (seen.append(torch.npu.is_current_stream_capturing()), x.add_(1)))
    with pytest.raises(ZeroDivisionError):
        captured(lambda: 1 / 0)
    return [*seen, torch.npu.is_current_stream_capturing(), x.tolist()]


def test_a_capture_runs_nothing_is_seen_and_ends_with_an_error(on_device: OnDevice):
    assert on_device(capture_state) == [True, False, [0.0, 0.0]]


def made_before() -> torch.Tensor:
    return torch.ones(2, device="npu")


BREAKING: dict[str, Callable[[torch.Tensor], Any]] = {
    "synchronize": lambda _: torch.npu.synchronize(),
    "stream synchronize": lambda _: torch.npu.current_stream().synchronize(),
    "stream query": lambda _: torch.npu.current_stream().query(),
    "event synchronize": lambda _: _recorded.synchronize(),
    "event query": lambda _: _recorded.query(),
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "condition": lambda x: bool(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "copy from plain memory": lambda x: x.copy_(torch.zeros(2)),
    "constant": lambda _: torch.tensor([1.0], device="npu"),
    "capture in a capture": lambda _: captured(lambda: None),
    "replay": lambda _: torch.npu.NPUGraph().replay(),
    "memory outside of the graph": lambda _: _on_another_stream(),
    "event from before": lambda _: torch.npu.current_stream().wait_event(_recorded),
}
_recorded: Any = None


def _on_another_stream() -> None:
    with torch.npu.stream(torch.npu.Stream()):
        torch.empty(3, device="npu")


def break_capture(name: str) -> tuple[str, bool, list[float]]:
    global _recorded
    x = made_before()
    _recorded = torch.npu.default_stream().record_event()
    with pytest.raises(RuntimeError) as caught:
        captured(lambda: BREAKING[name](x))
    return str(caught.value).splitlines()[0], torch.npu.is_current_stream_capturing(), (x + 1).tolist()


@pytest.mark.parametrize("name", BREAKING)
def test_a_capture_breaks_at_what_the_device_forbids_and_leaves_nothing(on_device: OnDevice, name: str):
    text, capturing, values = on_device(break_capture, name)
    assert text.startswith("emulated NPU: ")
    assert (capturing, values) == (False, [2.0, 2.0])


def other_thread(mode: str) -> bool:
    x = made_before()

    def read() -> bool:
        try:
            return x.tolist() == [1.0, 1.0]
        except RuntimeError:
            return False

    with ThreadPoolExecutor(1) as thread:
        return captured(lambda: thread.submit(read).result(), capture_error_mode=mode)[1]


def test_other_threads_may_wait_unless_the_capture_is_global(on_device: OnDevice):
    assert [on_device(other_thread, mode) for mode in ("global", "thread_local", "relaxed")] == [False, True, True]


def memory_gone() -> str:
    held = [made_before()]
    graph, _ = captured(lambda: held[0] + 1)
    graph.replay()
    held.clear()
    gc.collect()
    with pytest.raises(RuntimeError) as caught:
        graph.replay()
    return str(caught.value)


def test_a_replay_breaks_when_memory_it_reads_was_given_back(on_device: OnDevice):
    assert on_device(memory_gone) == "emulated NPU: memory that a graph uses in aten::add.out is gone"


def freed_within() -> str:
    held = [made_before()]

    def step() -> None:
        held[0].add_(1)
        held.clear()

    with pytest.raises(RuntimeError) as caught:
        captured(step)
    return str(caught.value)


def test_a_capture_breaks_when_it_gives_back_memory_that_the_graph_uses(on_device: OnDevice):
    assert on_device(freed_within) == "emulated NPU: memory that a graph uses in aten::add.out is gone"


def pools() -> list[Any]:
    torch.npu.synchronize()
    before = torch.npu.memory_reserved()
    pool = torch.npu.graph_pool_handle()
    kept = []
    for _ in range(2):
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph, pool=pool, stream=torch.npu.Stream()):
            total = torch.ones(1 << 18, device="npu").sum()
        kept.append((graph, total))
    held = torch.npu.memory_reserved() - before
    values = []
    for graph, total in kept:
        graph.replay()
        values.append(total.item())
    same = {graph.pool() == pool for graph, total in kept}
    while kept:
        kept.pop()[0].reset()
    del graph, total
    return [held, values, same, torch.npu.memory_reserved() - before]


def test_graphs_share_a_pool_and_give_it_back(on_device: OnDevice):
    # A megabyte and one small segment, which the second graph uses as well.
    assert on_device(pools) == [(1 << 20) + (64 << 10), [float(1 << 18)] * 2, {True}, 0]


def dropped_by_its_own_work() -> list[Any]:
    library = torch.library.Library("emulated_npu_drops", "DEF")
    library.define("drop(Tensor(a!) x) -> ()")
    library.impl("drop", lambda x: (kept.clear(), gc.collect(), x.add_(1), None)[-1], "CPU")
    x = torch.zeros(1, device="npu")
    gc.collect()  # graphs of other tests
    torch.npu.synchronize()
    before = torch.npu.memory_reserved()

    def step() -> None:
        large = torch.ones(1 << 18, device="npu")
        torch.ops.emulated_npu_drops.drop(x)
        x.add_(large[0])

    kept = [captured(step)[0]]
    kept[0].replay()
    values = x.tolist()
    library._destroy()
    torch.npu.synchronize()
    return [kept, values, torch.npu.memory_reserved() - before]


def test_a_graph_that_is_dropped_on_the_thread_of_a_stream_ends_its_replay_first(on_device: OnDevice):
    assert on_device(dropped_by_its_own_work) == [[], [2.0], 0]


def forked(join: str) -> list[float]:
    side = torch.npu.Stream()
    x = torch.zeros(2, device="npu")

    def step() -> torch.Tensor:
        current = torch.npu.current_stream()
        doubled = x * 2
        side.wait_stream(current)
        with torch.npu.stream(side):
            more = doubled + 1
            other = more + 1
        if join == "late":
            result = other * 10
            current.wait_stream(side)
        elif join == "joined":
            current.wait_stream(side)
            result = other * 10
        else:
            result = other * 10
        return result

    graph, result = captured(step)
    seen = []
    for value in (1, 2):
        x.fill_(value)
        graph.replay()
        seen.append(result[0].item())
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_that_wait_for_a_captured_one_are_captured_too(on_device: OnDevice, seed: int):
    assert on_device(forked, "joined", seed=seed) == [40.0, 60.0]


def test_an_event_that_is_missing_in_a_graph_shows(on_device: OnDevice):
    assert on_device(forked, "late", seed=LATE)[1] == 40.0


def test_a_stream_that_is_not_joined_again_breaks_the_capture(on_device: OnDevice):
    with pytest.raises(RuntimeError, match="had work that the captured stream does not wait for"):
        on_device(forked, "never")


def random_replays() -> list[bool]:
    torch.manual_seed(7)
    graph, drawn = captured(lambda: torch.rand(4, device="npu"))
    values = []
    for _ in range(2):
        graph.replay()
        values.append(drawn.tolist())
    return [values[0] != values[1], torch.rand(4, device="npu").tolist() not in values]


def test_every_replay_draws_numbers_of_its_own(on_device: OnDevice):
    assert on_device(random_replays) == [True, True]


def copy_in_graph() -> list[float]:
    source, target = torch.zeros(2, pin_memory=True), torch.zeros(2, pin_memory=True)
    x = torch.zeros(2, device="npu")

    def step() -> None:
        x.copy_(source, non_blocking=True)
        target.copy_(x + 1, non_blocking=True)

    graph, _ = captured(step)
    source.fill_(4)
    graph.replay()
    torch.npu.synchronize()
    return target.tolist()


def test_copies_from_and_to_pinned_memory_are_captured(on_device: OnDevice):
    assert on_device(copy_in_graph, seed=LATE) == [5.0, 5.0]


def c_function(path: str) -> list[int]:
    device, ran = ctypes.CDLL(path), []
    device.emulated_npu_current_stream.restype = ctypes.c_void_p
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: ran.append(1))
    capturing = []

    def step() -> None:
        stream = ctypes.c_void_p(device.emulated_npu_current_stream())
        capturing.append(device.emulated_npu_is_capturing(stream))
        device.emulated_npu_enqueue(
            stream, b"exchange", ctypes.c_uint64(0), function, None, None, None, ctypes.c_size_t(0)
        )

    graph, _ = captured(step)
    before = len(ran)
    for _ in range(3):
        graph.replay()
    torch.npu.synchronize()
    return [*capturing, before, len(ran)]


def test_functions_that_are_put_on_a_stream_from_c_are_captured(on_device: OnDevice, device_library: Path):
    assert on_device(c_function, str(device_library)) == [1, 0, 3]


def define_attention() -> Any:
    """An operator whose lengths are host values, as those of the attention operators that are updated."""
    library = torch.library.Library("emulated_npu_updates", "DEF")
    library.define("attend(Tensor x, *, SymInt[]? lengths=None) -> (Tensor, Tensor)")

    def attend(x: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return x * sum(lengths), x + len(lengths)

    def shapes(x: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
        return torch.empty_like(x), torch.empty_like(x)

    library.impl("attend", attend, "CPU")
    torch.library.register_fake("emulated_npu_updates::attend", shapes, lib=library)
    graphs.UPDATED["attend.default"] = {"lengths": 1}
    return library


def updates() -> dict[str, Any]:
    library = define_attention()
    attend = torch.ops.emulated_npu_updates.attend
    x = torch.ones(2, device="npu")
    seen: dict[str, Any] = {}

    def step() -> torch.Tensor:
        first, _ = attend(x, lengths=[1, 2])
        second, count = attend(first, lengths=[3])
        return second + count * 0

    plain, _ = captured(step)
    with pytest.raises(RuntimeError, match="auto_dispatch_capture=True"):
        plain.update([{"lengths": [1]}])
    graph, result = captured(step, auto_dispatch_capture=True)
    with ThreadPoolExecutor(1, initializer=torch.npu.set_device, initargs=(0,)) as executor:
        # As SGLang's backend does it: the update is made while the replay waits for it.
        for name, update in {
            "one for all": [{"lengths": [5], "unknown": 1}],
            "one each": [{"lengths": [2, 2]}, {"lengths": [10]}],
            "as it was": [{}],
        }.items():
            future = executor.submit(graph.update, cpu_update_input=update)
            graph.replay()
            future.result()
            fence = torch.npu.Event()
            fence.record()
            fence.synchronize()
            seen[name] = result.tolist()
    with pytest.raises(RuntimeError, match="2 operators need to be updated, 3 updates came"):
        graph.update([{}, {}, {}])
    native().set_flag_patience(0.01)
    graph.replay()
    with pytest.raises(RuntimeError) as caught:
        torch.npu.synchronize()
    seen["no update"] = str(caught.value)
    native().set_flag_patience(60.0)
    library._destroy()
    return seen


@pytest.mark.parametrize("seed", [emulated.SEED_AT_ONCE, LATE, 1])
def test_an_update_binds_host_values_anew_and_every_replay_needs_one(on_device: OnDevice, seed: int):
    assert on_device(updates, seed=seed) == {
        "one for all": [25.0, 25.0],
        "one each": [40.0, 40.0],
        "as it was": [40.0, 40.0],
        "no update": "emulated NPU: a stream waits for an NPUGraph.update that nobody makes",
    }


class EarlierBackend:
    """Replays as `NPUCudaGraphBackend` of SGLang 0.5.18 does."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._device_module = torch.npu

    def replay_with_input_update(self, lengths: list[int]) -> None:
        thread = Thread(target=self.graph.update, kwargs={"cpu_update_input": [{"lengths": lengths}]})
        thread.start()
        self.graph.replay()
        thread.join()


def replays_of_an_idle_rank(fenced: bool) -> str:
    library = define_attention()
    x = torch.ones(2, device="npu")
    graph, _ = captured(lambda: torch.ops.emulated_npu_updates.attend(x, lengths=[1])[0], auto_dispatch_capture=True)
    backend = EarlierBackend(graph)
    replay = EarlierBackend.replay_with_input_update
    native().set_flag_patience(60.0 if fenced else 0.01)
    for lengths in ([2], [3], [4]):
        if fenced:
            update_fence.update_after_replay(replay, backend, lengths)
        else:
            replay(backend, lengths)
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    finally:
        native().set_flag_patience(60.0)
        library._destroy()
    return ""


@pytest.mark.parametrize("fenced", [pytest.param(True, id="fenced"), pytest.param(False, id="as-in-0.5.18")])
def test_an_update_that_overtakes_the_replay_before_it_is_waited_for_in_vain(on_device: OnDevice, fenced: bool):
    found = on_device(replays_of_an_idle_rank, fenced, seed=LATE)
    assert found == ("" if fenced else "emulated NPU: a stream waits for an NPUGraph.update that nobody makes")
