"""The emulated NPU behaves as a device: memory of its own, streams that run later, values that have to be waited for.

`SEED_WHEN_AWAITED` makes a missing synchronisation certain to show: nothing runs that nobody waits for.
"""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.npu import emulated
from tests.npu.conftest import MEMORY_BYTES, open_process
from tests.npu.device.library import native

OnDevice = Callable[..., Any]
LATE = emulated.SEED_WHEN_AWAITED
SEEDS = (emulated.SEED_AT_ONCE, LATE, 1, 2, 3)
HOST_ACCESS_EXIT_CODE = 86
REPOSITORY = Path(__file__).parents[2]


def counted(since: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What the device has done since `native().counters()` returned `since`: (calls, bytes) by name."""
    now = native().counters()
    change = {name: (now[name][0] - calls, now[name][1] - size) for name, (calls, size) in {**now, **since}.items()}
    new = {name: now[name] for name in now.keys() - since.keys()}
    return {name: counts for name, counts in {**change, **new}.items() if counts[0]}


# --- memory


def account() -> tuple[list[int], int, int]:
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    held = torch.empty(1000, dtype=torch.uint8, device="npu")
    seen = [torch.npu.memory_allocated() - before]
    again = torch.empty(4 << 20, dtype=torch.uint8, device="npu")
    free, total = torch.npu.mem_get_info()
    seen.append(total - free - before)
    del again, held
    seen += [torch.npu.memory_allocated() - before, torch.npu.max_memory_allocated() - before]
    return seen, total, torch.npu.get_device_properties(0).total_memory


def test_memory_is_accounted_in_blocks_of_512_bytes(on_device: OnDevice):
    assert on_device(account) == ([1024, 1024 + (4 << 20), 0, 1024 + (4 << 20)], MEMORY_BYTES, MEMORY_BYTES)


def exhaust() -> tuple[str, bool]:
    parts = []
    try:
        while True:
            parts.append(torch.empty(10 << 20, dtype=torch.uint8, device="npu"))
    except torch.OutOfMemoryError as error:
        text = str(error)
    parts.clear()
    return text, torch.empty(60 << 20, dtype=torch.uint8, device="npu").numel() > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_that_runs_out_is_an_error_of_the_emulated_npu_and_comes_back(on_device: OnDevice, seed: int):
    text, again = on_device(exhaust, seed=seed)
    assert "emulated NPU out of memory: tried to allocate 10485760 bytes" in text
    assert again


def reuse(record: bool) -> tuple[bool, list[float]]:
    """A second stream reads memory that the first one gives back, and fills anew, meanwhile."""
    torch.npu.synchronize()
    side = torch.npu.Stream()
    x = torch.ones(1 << 16, device="npu")
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        copied = x[:4] * 1
    if record:
        x.record_stream(side)
    address = x.data_ptr()
    del x
    other = torch.full((1 << 16,), 7.0, device="npu")
    torch.npu.current_stream().synchronize()
    with torch.npu.stream(side):
        return other.data_ptr() == address, copied.tolist()


def test_memory_that_another_stream_still_reads_is_lost_unless_that_was_recorded(on_device: OnDevice):
    assert on_device(reuse, False, seed=LATE) == (True, [7.0] * 4)
    assert on_device(reuse, True, seed=LATE) == (False, [1.0] * 4)


def views() -> tuple[list[bool], dict[str, tuple[int, int]]]:
    x = torch.arange(24.0, device="npu")
    torch.npu.synchronize()
    since = native().counters()
    made = [
        x.view(4, 6).t()[1:3],
        x[::2],
        x.unfold(0, 4, 2),
        x.view(torch.int32),
        x.detach(),
        x.reshape(2, 12).chunk(2),
    ]
    made[-1] = made[-1][1]
    return [one.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for one in made], counted(since)


def test_views_share_memory_and_put_nothing_on_a_stream(on_device: OnDevice):
    assert on_device(views) == ([True] * 6, {})


PROGRAM = """
import ctypes, faulthandler, sys
from pathlib import Path
from tests.npu import emulated
emulated.install(emulated.Settings(sys.argv[1], memory_bytes=1 << 20))
import torch
x = torch.ones(4, device="npu")
{then}
"""


def run_program(library: Path, then: str) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM.format(then=then), str(library)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("first", "access", "use"),
    [
        ("pass", "wrote", "ctypes.memset(x.data_ptr(), 0, 4)"),
        ("faulthandler.enable()", "read", "ctypes.string_at(x.data_ptr(), 4)"),
    ],
    ids=["write", "read, with faulthandler"],
)
def test_host_code_that_uses_a_device_pointer_is_reported_with_where_python_was(
    device_library: Path, first: str, access: str, use: str
):
    code, text = run_program(device_library, f"{first}\ndef careless():\n    {use}\ncareless()")
    assert code == HOST_ACCESS_EXIT_CODE
    assert f"host code {access} memory of the emulated NPU at 0x" in text
    assert "in careless" in text


def test_another_fault_is_what_it_was(device_library: Path):
    code, text = run_program(device_library, "ctypes.string_at(16, 4)")
    assert code == -11
    assert "emulated NPU" not in text


# --- streams and events


def late() -> list[list[float]]:
    x, seen = torch.zeros(2, device="npu"), torch.zeros(2, pin_memory=True)
    torch.npu.synchronize()
    x.add_(1)
    seen.copy_(x, non_blocking=True)
    before = seen.tolist()
    torch.npu.current_stream().synchronize()
    return [before, seen.tolist()]


def test_work_runs_after_the_call_has_returned_and_a_missing_wait_shows(on_device: OnDevice):
    assert on_device(late, seed=LATE) == [[0.0, 0.0], [1.0, 1.0]]


def missing_wait_shows_with_some_seed() -> bool:
    found = []
    for seed in range(1, 21):
        native().set_seed(seed)
        found.append(late()[0] == [0.0, 0.0])
    return any(found)


def test_a_missing_wait_shows_with_some_random_seed(on_device: OnDevice):
    assert on_device(missing_wait_shows_with_some_seed)


def hand_over(order: str) -> list[float]:
    side, x = torch.npu.Stream(), torch.zeros(2, device="npu")
    torch.npu.synchronize()
    x.fill_(3)
    event = torch.npu.Event()
    event.record()
    with torch.npu.stream(side):
        if order == "event":
            event.wait()
        elif order == "wait_event":
            side.wait_event(event)
        elif order == "wait_stream":
            side.wait_stream(torch.npu.default_stream())
        elif order == "synchronize":
            event.synchronize()
        y = x + 1
        return y.tolist()


@pytest.mark.parametrize("order", ["event", "wait_event", "wait_stream", "synchronize"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_sees_what_it_has_waited_for(on_device: OnDevice, order: str, seed: int):
    assert on_device(hand_over, order, seed=seed) == [4.0, 4.0]


def test_a_missing_event_shows(on_device: OnDevice):
    assert on_device(hand_over, "none", seed=LATE) == [1.0, 1.0]


def enter_again() -> list[int]:
    context, seen = torch.npu.stream(torch.npu.Stream()), []
    for _ in range(2):
        with context, torch.npu.stream(None), context:
            seen.append(torch.npu.current_stream() == context.stream)
        seen.append(torch.npu.current_stream().stream_id)
    return seen


def test_the_context_of_a_stream_may_be_entered_again(on_device: OnDevice):
    assert on_device(enter_again) == [True, 0, True, 0]


def queries() -> list[bool]:
    stream, event = torch.npu.Stream(), torch.npu.Event(enable_timing=True)
    seen = [event.query(), stream.query()]
    with torch.npu.stream(stream):
        torch.ones(3, device="npu")
        event.record()
    seen += [event.query(), stream.query()]
    event.synchronize()
    later = stream.record_event(torch.npu.Event(enable_timing=True))
    later.synchronize()
    return [*seen, event.query(), event.elapsed_time(later) >= 0]


def test_events_and_streams_say_whether_they_are_reached(on_device: OnDevice):
    assert on_device(queries, seed=LATE) == [True, True, False, False, True, True]


def copies() -> dict[str, int]:
    """How often the host waits in each kind of copy."""
    waits = {}

    def note(name: str, copy: Callable[[], Any]) -> None:
        since = native().counters()
        copy()
        waits[name] = counted(since).get("host synchronisation", (0, 0))[0]

    x, pinned, plain = torch.ones(4, device="npu"), torch.ones(4, pin_memory=True), torch.ones(4)
    note("to pinned", lambda: pinned.copy_(x, non_blocking=True))
    note("from pinned", lambda: x.copy_(pinned, non_blocking=True))
    note("from plain, non_blocking", lambda: x.copy_(plain, non_blocking=True))
    note("to pinned, blocking", lambda: pinned.copy_(x))
    note("to plain, non_blocking", lambda: plain.copy_(x, non_blocking=True))
    note("cpu", lambda: x.cpu())
    note("to npu", lambda: plain.to("npu"))
    note("item", lambda: x[0].item())
    note("nonzero", lambda: x.nonzero())
    note("operators", lambda: (x + 1).softmax(-1).topk(2))
    return waits


def test_the_host_waits_where_a_device_makes_it_wait(on_device: OnDevice):
    assert on_device(copies) == {
        "to pinned": 0, "from pinned": 0, "from plain, non_blocking": 0, "to pinned, blocking": 1,
        "to plain, non_blocking": 1, "cpu": 1, "to npu": 1, "item": 1, "nonzero": 1, "operators": 0,
    }  # fmt: skip


def snapshot() -> list[float]:
    plain, x = torch.ones(2), torch.zeros(2, device="npu")
    x.copy_(plain, non_blocking=True)
    plain.fill_(9)
    return x.tolist()


def test_a_copy_from_plain_memory_has_the_values_of_the_call(on_device: OnDevice):
    assert on_device(snapshot, seed=LATE) == [1.0, 1.0]


def pinned() -> list[bool]:
    return [
        torch.empty(3, pin_memory=True).is_pinned(), torch.ones(3).pin_memory().is_pinned(),
        torch.empty(8, pin_memory=True)[3:].is_pinned(), torch.ones(3).is_pinned(),
    ]  # fmt: skip


def test_pinned_memory_is_known(on_device: OnDevice):
    assert on_device(pinned) == [True, True, True, False]


def bad_position() -> list[str]:
    texts = []
    x = torch.zeros(2, device="npu")[torch.tensor([7], device="npu")] + 1
    for read in (x.cpu, torch.npu.synchronize):
        with pytest.raises(RuntimeError) as caught:
            read()
        texts.append(str(caught.value).splitlines()[0])
    return texts


def test_work_that_fails_is_told_by_every_wait_that_follows(on_device: OnDevice):
    text = (
        "emulated NPU: aten::index.Tensor_out failed on stream 0: index 7 is out of bounds for dimension 0 with size 2"
    )
    assert on_device(bad_position) == [text, text]


def mixed_devices() -> None:
    torch.ones(3, device="npu").index_add_(0, torch.tensor([0, 1]), torch.ones(2))


def test_tensors_of_the_host_are_refused(on_device: OnDevice):
    with pytest.raises(RuntimeError, match="same device"):
        on_device(mixed_devices)


# --- what torch has of a device


def draw(seed: int) -> list[list[float]]:
    torch.manual_seed(seed)
    first = torch.rand(3, device="npu").tolist()
    state = torch.npu.get_rng_state()
    second = torch.randn(3, device="npu").tolist()
    torch.npu.set_rng_state(state)
    again = torch.randn(3, device="npu").tolist()
    generator = torch.Generator("npu").manual_seed(seed)
    own = torch.empty(3, device="npu").uniform_(generator=generator).tolist()
    numbers = torch.multinomial(torch.ones(8, device="npu"), 4, generator=generator).tolist()
    return [first, second, again, own, numbers, torch.randperm(5, device="npu").tolist()]


def test_random_numbers_depend_on_generators_alone(on_device: OnDevice):
    drawn = [on_device(draw, 3, seed=seed) for seed in SEEDS]
    assert all(one == drawn[0] for one in drawn)
    assert drawn[0][1] == drawn[0][2]
    assert drawn[0] != on_device(draw, 4)


def load_and_save() -> list[str]:
    x = torch.arange(6.0, device="npu").view(2, 3)
    file = io.BytesIO()
    torch.save(x, file)
    places = []
    for location in ("npu", "npu:0", "cpu", None):
        file.seek(0)
        loaded = torch.load(file, map_location=location)
        places.append(str(loaded.device) if torch.equal(loaded.cpu(), x.cpu()) else "other values")
    layer = torch.nn.Linear(3, 2).to("npu")
    return [*places, str(layer(x).device), str(torch.empty(1).npu().device), str(x.to("cpu").device)]


def test_tensors_and_layers_move_and_are_saved_and_loaded(on_device: OnDevice):
    assert on_device(load_and_save) == ["npu:0", "npu:0", "cpu", "npu:0", "npu:0", "npu:0", "cpu"]


def names() -> list[Any]:
    return [
        torch.npu.is_available(), torch.npu.device_count(), torch.npu.current_device(), torch.npu.get_device_name(0),
        torch.accelerator.current_accelerator().type, torch.get_device_module() is torch.npu,
        torch.npu.current_stream() == torch.npu.default_stream(),
    ]  # fmt: skip


def test_torch_npu_says_what_it_is(on_device: OnDevice):
    assert on_device(names) == [True, 8, 0, "emulated NPU", "npu", True, True]


def second_die() -> None:
    torch.ones(1, device="npu:0")
    torch.ones(1, device="npu:1")


def test_a_process_has_one_die(on_device: OnDevice):
    with pytest.raises(RuntimeError, match="one die of the emulated NPU; this one has opened 0 and cannot use 1"):
        on_device(second_die)


def use_die() -> tuple[str, int, float]:
    x = torch.ones(1 << 20, device="npu") * 2
    return str(x.device), torch.npu.memory_allocated(), x.sum().item()


def test_processes_have_a_die_each(device_library: Path):
    processes: list[ProcessPoolExecutor] = [open_process(device_library, index) for index in (0, 1)]
    try:
        used = [process.submit(use_die) for process in processes]
        assert [one.result(timeout=120) for one in used] == [
            (f"npu:{index}", 4 << 20, float(2 << 20)) for index in (0, 1)
        ]
    finally:
        for process in processes:
            process.shutdown()


# --- operators of others


def define_operators() -> list[Any]:
    library = torch.library.Library("emulated_npu_tests", "DEF")
    library.define("scaled(Tensor x, int[] factors) -> (Tensor, Tensor)")
    library.define("store_(Tensor(a!) cache, Tensor row, int at) -> ()")
    library.define("only_known(Tensor x) -> Tensor")
    library.define("without_shape(Tensor x) -> Tensor")

    def scaled(x: torch.Tensor, factors: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return x * factors[0], (x * factors[1]).to(torch.int64)

    def store(cache: torch.Tensor, row: torch.Tensor, at: int) -> None:
        cache[at].copy_(row)

    def shape(x: torch.Tensor, factors: list[int]) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.int64)

    library.impl("scaled", scaled, "CPU")
    library.impl("store_", store, "CPU")
    library.impl("without_shape", lambda x: x + 1, "CPU")
    torch.library.register_fake("emulated_npu_tests::scaled", shape, lib=library)
    operators = torch.ops.emulated_npu_tests
    x, cache = torch.ones(2, device="npu"), torch.zeros(3, 2, device="npu")
    first, second = operators.scaled(x, [2, 3])
    operators.store_(cache, first, 1)
    texts = []
    for operator in (operators.only_known, operators.without_shape):
        with pytest.raises(NotImplementedError) as caught:
            operator(x)
        texts.append(str(caught.value).splitlines()[0])
    found = [first.tolist(), second.tolist(), cache.tolist(), *texts]
    library._destroy()
    return found


def test_operators_of_python_run_on_streams_and_a_missing_one_is_named(on_device: OnDevice):
    *results, missing, without_shape = on_device(define_operators)
    assert results == [[2.0, 2.0], [3, 3], [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]]
    assert missing == "emulated NPU: operator emulated_npu_tests::only_known is missing"
    assert "emulated_npu_tests::without_shape" in without_shape


def from_c(path: str) -> list[Any]:
    device = ctypes.CDLL(path)
    device.emulated_npu_shadow.restype = device.emulated_npu_allocate.restype = ctypes.c_void_p
    device.emulated_npu_current_stream.restype = ctypes.c_void_p
    device.emulated_npu_shadow.argtypes = device.emulated_npu_free.argtypes = [ctypes.c_void_p]
    device.emulated_npu_add_range.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    device.emulated_npu_allocate.argtypes = [ctypes.c_size_t]
    x = torch.arange(4, dtype=torch.int32, device="npu")
    torch.npu.synchronize()
    seen: list[Any] = [(ctypes.c_int32 * 4).from_address(device.emulated_npu_shadow(x.data_ptr()))[:]]
    seen.append(device.emulated_npu_shadow(16))

    run_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    double = run_type(lambda _: seen.append("ran"))
    addresses = (ctypes.c_void_p * 1)(x.data_ptr())
    arguments = (b"exchange", ctypes.c_uint64(64), double, None, None, addresses, ctypes.c_size_t(1))
    since = native().counters()
    seen.append(device.emulated_npu_enqueue(ctypes.c_void_p(device.emulated_npu_current_stream()), *arguments))
    seen += [list(seen).count("ran"), counted(since)["exchange"]]
    torch.npu.synchronize()

    window = (ctypes.c_int32 * 2)(5, 6)
    place = x.data_ptr() + (1 << 40)
    seen.append(device.emulated_npu_add_range(place, ctypes.sizeof(window), ctypes.addressof(window)))
    mapped = torch.ops.emulated_npu.from_address(place, [2], [1], torch.int32)
    seen.append((mapped + 1).tolist())
    mapped.fill_(9)
    torch.npu.synchronize()
    seen += [list(window), device.emulated_npu_remove_range(ctypes.c_void_p(place)), device.emulated_npu_shadow(place)]
    raw = device.emulated_npu_allocate(100)
    seen.append(torch.ops.emulated_npu.from_address(raw, [3], [1], torch.float32).fill_(2).tolist())
    device.emulated_npu_free(raw)
    return seen


def test_other_stand_ins_reach_memory_and_streams_from_c(on_device: OnDevice, device_library: Path):
    assert on_device(from_c, str(device_library), seed=LATE) == [
        [0, 1, 2, 3], None, 0, 0, (1, 64), "ran", 0, [6, 7], [9, 9], 0, None, [2.0, 2.0, 2.0],
    ]  # fmt: skip
