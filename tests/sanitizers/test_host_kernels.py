"""The host kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, with ranks as threads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.native.library import native_layout
from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window

REPOSITORY = Path(__file__).resolve().parents[2]
HARNESS = REPOSITORY / "tests" / "sanitizers" / "ranks_as_threads.cpp"
KERNELS = sorted((REPOSITORY / "kernels" / "host").glob("*.cpp"))
INCLUDES = (f"-I{REPOSITORY / 'kernels' / 'include'}", f"-I{REPOSITORY / 'kernels' / 'host'}")
FLAGS = ("-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")


class Sanitizer(NamedTuple):
    name: str
    flags: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


MEMORY = Sanitizer(
    "address-and-undefined",
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    (("ASAN_OPTIONS", "detect_leaks=1"), ("UBSAN_OPTIONS", "print_stacktrace=1")),
)
NOTHING = Sanitizer("none", (), ())
RACES = Sanitizer("thread", ("-fsanitize=thread",), (("TSAN_OPTIONS", "halt_on_error=1"),))

Objects = Callable[[Sanitizer], dict[str, Path]]


def compile_object(source: Path, target: Path, sanitizer: Sanitizer) -> Path:
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, *FLAGS, *sanitizer.flags, *INCLUDES, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


def run_harness(
    objects: dict[str, Path], sanitizer: Sanitizer, folder: Path, exchanges: int = 500, **options: Any
) -> str:
    """Links and runs the harness; returns what it and the sanitizer printed."""
    binary = folder / "ranks_as_threads"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *sanitizer.flags, *map(str, objects.values()), "-pthread", "-o", str(binary)], check=True)
    parameters = ExchangeParameters(
        num_experts=4 * options["ranks"], hidden=48, max_tokens=6, topk=3, dtype="float32", **options
    )
    layout = folder / "layout"
    layout.write_bytes(bytes(native_layout(plan_window(parameters))))
    # Without address randomisation: the shadow memory of older ThreadSanitizers needs the classic address map.
    command = ["setarch", "--addr-no-randomize", str(binary), str(layout), str(exchanges)]
    environment = dict(os.environ) | dict(sanitizer.environment)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The harness and the kernels, compiled once per sanitizer."""
    cache: dict[str, dict[str, Path]] = {}

    def build(sanitizer: Sanitizer) -> dict[str, Path]:
        if sanitizer.name not in cache:
            folder = tmp_path_factory.mktemp(sanitizer.name)
            cache[sanitizer.name] = {
                source.name: compile_object(source, folder / f"{source.stem}.o", sanitizer)
                for source in (HARNESS, *KERNELS)
            }
        return cache[sanitizer.name]

    return build


@pytest.mark.parametrize(
    ("ranks", "slots", "verify", "counts"),
    [*product((2, 3), (1, 2), (False, True), ("matrix",)), (3, 2, True, "grants")],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("sanitizer", [MEMORY, RACES], ids=lambda sanitizer: sanitizer.name)
def test_no_access_is_wrong_or_races(
    built: Objects, sanitizer: Sanitizer, tmp_path: Path, ranks: int, slots: int, verify: bool, counts: str
) -> None:
    options = {"ranks": ranks, "slots": slots, "verify": verify, "counts": counts}
    assert run_harness(built(sanitizer), sanitizer, tmp_path, **options) == "all results exact\n"


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", [128, 384], ids=lambda ranks: f"{ranks}-ranks")
def test_ranks_of_a_large_deployment_get_exact_results(built: Objects, tmp_path: Path, ranks: int) -> None:
    told = run_harness(built(NOTHING), NOTHING, tmp_path, exchanges=14, ranks=ranks, counts="grants")
    assert told == "all results exact\n"


class Weakened(NamedTuple):
    """A word whose memory order is weakened: the first one after `marker` in `source`."""

    source: str
    marker: str
    order: str


# Not push-counts and wait-counts: on a coherent host the header, pushed after the counts, orders them as well.
@pytest.mark.parametrize(
    "weakened",
    [
        Weakened("announce.cpp", "push-header", "release"),
        Weakened("announce.cpp", "wait-headers", "acquire"),
        Weakened("dispatch.cpp", "push-arrive", "release"),
        Weakened("dispatch.cpp", "wait-arrivals", "acquire"),
        Weakened("offsets.cpp", "push-grant", "release"),
        Weakened("offsets.cpp", "wait-grants", "acquire"),
        Weakened("combine.cpp", "push-done", "release"),
        Weakened("combine.cpp", "wait-done", "acquire"),
    ],
    ids=lambda weakened: weakened.marker,
)
def test_a_weaker_memory_order_is_reported_as_a_race(built: Objects, tmp_path: Path, weakened: Weakened) -> None:
    original = (REPOSITORY / "kernels" / "host" / weakened.source).read_text()
    before, marker, after = original.partition(f"@protocol {weakened.marker}")
    mutant = tmp_path / weakened.source
    mutant.write_text(before + marker + after.replace(f"memory_order_{weakened.order}", "memory_order_relaxed", 1))
    assert mutant.read_text() != original
    objects = dict(built(RACES))
    objects[weakened.source] = compile_object(mutant, tmp_path / "mutant.o", RACES)
    counts = "grants" if weakened.source == "offsets.cpp" else "matrix"
    assert "data race" in run_harness(objects, RACES, tmp_path, ranks=3, counts=counts)
