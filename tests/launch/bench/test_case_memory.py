"""What a case touches is known before anything is allocated, and what does not fit is left out by name."""

from __future__ import annotations

import ctypes
from itertools import product
from pathlib import Path

import msgspec
import pytest
import torch.distributed as dist

from sglang_ascend_moe.launch.bench import rank_processes
from sglang_ascend_moe.launch.bench.case_memory import SPARE_BYTES, needed, received_rows, without_room
from sglang_ascend_moe.launch.bench.cases import PRESETS, VARIANTS, Case
from sglang_ascend_moe.launch.bench.drawn_routing import make_batch, traffic
from sglang_ascend_moe.launch.bench.measure import Stopwatch
from sglang_ascend_moe.launch.bench.shared_memory import Barrier
from sglang_ascend_moe.launch.bench.variant_opening import open_variants
from sglang_ascend_moe.launch.bench.variants.variant import Ranks
from sglang_ascend_moe.serving.launcher.exit_codes import OK
from tests.exchange.pool import Rank

from .shapes import case

GIB = 1 << 30
LARGEST = case(phase="prefill", hidden=4096, tokens=max(PRESETS["paper-prefill"].tokens), topk=8, experts=64)
EVEN = [LARGEST.tokens * LARGEST.topk] * 2
PREFILL = [name for name in VARIANTS if name != "quantise-memcpy"]


def proportional_bytes() -> int:
    """Of this process, memory that is shared counted in equal parts, what the allocator keeps for later not at all."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def touched(rank: Rank, shape: Case, names: list[str]) -> int:
    """Bytes of this rank at its peak: in the last all-to-all of `collective`, or after everything else."""
    ranks = Ranks(rank.rank, rank.group, Barrier(rank.group), None)
    sent = traffic(shape)
    dist.barrier(group=rank.group)
    before, peaks = proportional_bytes(), []
    batch = make_batch(shape, rank.rank)
    stopwatch = Stopwatch(shape, ranks, batch, sent)
    variants = open_variants(names, {}, shape, ranks, batch, sent).variants
    all_to_all = dist.all_to_all_single

    def sampled(*arguments, **keywords):
        all_to_all(*arguments, **keywords)
        dist.barrier(group=rank.group)
        peaks.append(proportional_bytes())
        dist.barrier(group=rank.group)

    dist.all_to_all_single = sampled
    try:
        for name in sorted(names, key=lambda name: name == "collective"):
            assert variants[name].problem(shape, ranks, batch) is None
            stopwatch.run(variants[name])
        dist.barrier(group=rank.group)
        peaks.append(proportional_bytes())
        dist.barrier(group=rank.group)
    finally:
        dist.all_to_all_single = all_to_all
        for variant in variants.values():
            variant.close()
    return max(peaks) - before


ALL, OURS, COPY = [name for name in PREFILL if name != "mpi"], ["relay-free"], ["memcpy"]


@pytest.mark.parametrize(
    ("names", "routing", "dtype"),
    [
        pytest.param(OURS, "uniform", "int8", id="ours, int8"),
        pytest.param(COPY, "uniform", "bf16", id="memcpy"),
        *(
            pytest.param(*values, id=", ".join((str(len(values[0])), *values[1:])), marks=pytest.mark.nightly)
            for values in product((ALL, OURS, COPY), ("uniform", "one-expert"), ("bf16", "int8"))
        ),
    ],
)
def test_what_is_touched_is_what_was_said(make_pool, names: list[str], routing: str, dtype: str):
    shape = case(phase="prefill", hidden=4096, tokens=1024, topk=8, experts=64, dtype=dtype, routing=routing)
    said = needed(shape, received_rows(shape, traffic(shape)), names)
    # Once before, for the libraries that a rank loads when it first needs them.
    make_pool(2).run(touched, msgspec.structs.replace(shape, tokens=8), names)
    found = sum(make_pool(2).run(touched, shape, names))
    # Beside the rows there are buffers of a fixed size, such as slices of the check.
    fixed = 48 << 20
    assert 0.85 * said - fixed <= found <= 1.05 * said + fixed, (said >> 20, found >> 20)


def test_all_variants_of_the_largest_preset_fit_into_a_machine_of_24_gb():
    assert without_room(LARGEST, EVEN, PREFILL, 21 * GIB) == {}


def test_what_does_not_fit_is_left_out_from_the_hungriest_on_with_what_it_needs():
    missing = without_room(LARGEST, EVEN, PREFILL, 18 * GIB)
    assert list(missing) == ["collective"]
    needs = (needed(LARGEST, EVEN, PREFILL) + SPARE_BYTES) / GIB
    assert missing["collective"].startswith(f"needs {needs:.1f} GiB together with relay-free, relay, ")
    assert "18.0 GiB are available: choose fewer with --against" in missing["collective"]
    assert set(without_room(LARGEST, EVEN, PREFILL, GIB)) == set(PREFILL)


def test_a_case_for_which_there_is_no_memory_is_recorded_and_the_others_are_measured():
    huge = case(ranks=1, tokens=1 << 16, hidden=1 << 24)
    outcome = rank_processes.run_ranks([huge, case(ranks=1)], ["relay-free", "memcpy"], 3, 10, 60)
    assert outcome.exit_code == OK
    reasons = {record.variant: record.absent for record in outcome.records if record.case == huge}
    assert list(reasons) == ["relay-free", "memcpy"]
    assert all(reason is not None and "GiB are available" in reason for reason in reasons.values())
    assert all(record.checked for record in outcome.records if record.case != huge)
