"""The host model reports what a device would punish, and nothing else. Each hazard is a small kernel in hazards.cpp."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .host_model import MODEL_SOURCES, compile_source, link

Run = Callable[[str], str]
HAZARDS_SOURCE = Path(__file__).with_name("hazards.cpp")

HAZARDS = {
    "unified-buffer-overfull": "does not fit the unified buffer",
    "behind-the-buffer": "outside the buffer",
    "vector-behind-the-buffer": "256 bytes in a buffer of 224",
    "copy-to-unaligned-address": "not a multiple of 32",
    "vector-at-unaligned-address": "not a multiple of 32",
    "copy-rounded-down": "that nobody wrote",
    "padding-read": "that nobody wrote",
    "unwritten-buffer-read": "that nobody wrote",
    "vector-before-load": "on pipe V reads what MTE2 wrote without waiting",
    "event-of-another-pair": "on pipe S reads what MTE2 wrote without waiting",
    "store-before-vector": "on pipe MTE3 reads what V wrote without waiting",
    "store-before-scalar": "on pipe MTE3 reads what S wrote without waiting",
    "vector-without-barrier": "on pipe V reads what V wrote without waiting",
    "vector-over-a-part-of-its-operand": "overlaps a part of an operand",
    "too-many-buffers": "at most 64 buffers",
    "load-over-a-store": "on pipe MTE2 overwrites what MTE3 still reads",
    "load-over-a-scalar-read": "on pipe MTE2 overwrites what S still reads",
    "event-set-twice": "is set again before anyone waited for it",
    "event-never-set": "which nobody set",
    "event-left-set": "ends with event MTE2_V id 3 set",
    "event-id-too-large": "event id 8",
    "events-exhausted": "all 8 events of MTE2_V are in use",
    "scalar-barrier": "hardware error",
    "queue-empty": "DeQue of an empty queue",
    "queue-exhausted": "all 2 buffers of the queue are in use",
    "queue-overfull": "the queue of depth 1 is full",
    "queue-of-a-stranger": "EnQue of a tensor that was not allocated",
    "queue-freed-before-dequeued": "FreeTensor of a tensor that was not dequeued",
    "queue-not-freed": "ends with a tensor of a queue in use",
    "outside-global-memory": "lie in no region",
    "input-written": "must not be written",
    "rows-read-before-flags": "must not be read",
    "remote-rows-read": "must not be read",
    "rows-moved-by-two-cores": "meet in rows",
    "unwritten-workspace-read": "which nobody wrote",
    "store-not-fenced": "is not yet visible",
    "barrier-of-some-cores": "barrier mismatch",
    "two-cores-write-the-same": "meet in workspace",
    "two-cores-share-a-line": "meet in flags",
    "rows-not-visible-before-flag": "is not yet visible there",
    "rows-after-flag": "after the flag that announces it",
    "flag-without-barrier-of-cores": "without a barrier after the rows|after the flag that announces it",
    "end-not-waited-for": "meet in workspace|which nobody wrote|is not yet visible",
    "end-told-before-a-store-is-visible": "earlier loads or stores of the core are under way",
    "end-told-during-a-load": "earlier loads or stores of the core are under way",
    "load-after-the-end": "loads after it has told that it ends",
    "store-after-the-end": "stores after it has told that it ends",
    "scalar-store-not-written-back": "no cache maintenance wrote back",
    "dma-past-a-dirty-line": "which the scalar cache holds changed",
    "stale-scalar-load": "hits a cached line that has changed",
}
HARMLESS = (
    "nothing", "rows-moved-after-flags", "end-waited-for", "scalar-load-after-invalidation", "stores-are-held-back",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, objects) -> Run:
    folder = tmp_path_factory.mktemp("hazards")
    model = [path for path in objects.others if path.stem in {source.stem for source in MODEL_SOURCES}]
    compiled = compile_source(HAZARDS_SOURCE, folder / "hazards.o")
    library = ctypes.CDLL(str(link([compiled, *model], folder / "hazards.so")))
    library.run_hazard.argtypes = [ctypes.c_char_p]
    library.run_hazard.restype = ctypes.c_char_p
    return lambda name: library.run_hazard(name.encode()).decode()


@pytest.mark.parametrize("hazard", HAZARDS)
def test_a_hazard_is_reported(run, hazard):
    assert re.search(HAZARDS[hazard], run(hazard))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_device_allows_is_not_reported(run, name):
    assert run(name) == ""


def test_every_hazard_has_a_test():
    named = set(re.findall(r'^    \{"([a-z-]+)",', HAZARDS_SOURCE.read_text(), re.MULTILINE))
    assert named == {*HAZARDS, *HARMLESS}
