"""Limits of the machine are read as they are, and windows that they do not leave room for are refused by name."""

import gc
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil
import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.serving.machine_limits import MIB, Demand, MachineLimits, read_limits, refuse_what_does_not_fit

UNLIMITED = MachineLimits(
    memory_available=2**62, container_limit=None, container_available=None, file_bytes=None, address_space=None,
    locked_memory=None, descriptors=None, descriptors_most=None, descriptors_open=5,
)  # fmt: skip
WINDOWS = tuple(
    Exchange.memory(ranks=4, num_experts=8, hidden=hidden, max_tokens=64, topk=2, distinct_topk=True)
    for hidden in (256, 512)
)
DEMAND = Demand(ranks=4, windows=WINDOWS)
PER_RANK = sum(window.total for window in WINDOWS)
LARGEST = max(window.total for window in WINDOWS)

# The limit, the least that is enough, and what the refusal has to name.
CASES = {
    "memory of the machine": ("memory_available", 4 * PER_RANK, ["MemAvailable", "--ascend-moe-window-bytes"]),
    "memory of the container": ("container_available", 4 * PER_RANK, ["control group", "--chunked-prefill-size"]),
    "size of a file": ("file_bytes", LARGEST, ["RLIMIT_FSIZE", "ulimit -f", f"{LARGEST} bytes"]),
    "address space": ("address_space", 4 * PER_RANK, ["RLIMIT_AS", "ulimit -v"]),
    "descriptors": ("descriptors", 5 + DEMAND.descriptors, ["RLIMIT_NOFILE", "ulimit -n", "--tp-size"]),
}


@pytest.mark.parametrize(("limit", "enough", "named"), CASES.values(), ids=CASES.keys())
def test_what_does_not_fit_is_refused_by_name_and_what_fits_is_not(limit: str, enough: int, named: list[str]):
    refuse_what_does_not_fit(DEMAND, msgspec.structs.replace(UNLIMITED, **{limit: enough}))
    with pytest.raises(Unsupported) as refusal:
        refuse_what_does_not_fit(DEMAND, msgspec.structs.replace(UNLIMITED, **{limit: enough - 1}))
    assert [part for part in [*named, str(enough - 1)] if part not in str(refusal.value)] == []


def test_a_machine_without_limits_refuses_nothing():
    refuse_what_does_not_fit(DEMAND, UNLIMITED)


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


VERSION_2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "100\n",
    "sys/fs/cgroup/outer/memory.max": f"{8 * MIB}\n",
    "sys/fs/cgroup/outer/memory.current": f"{6 * MIB}\n",
    "sys/fs/cgroup/outer/memory.stat": f"anon 7\ninactive_file {MIB}\nactive_file 3\n",
}
VERSION_1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/inner\n0::/\n",
    "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": f"{4 * MIB}\n",
    "sys/fs/cgroup/memory/inner/memory.usage_in_bytes": f"{3 * MIB}\n",
    "sys/fs/cgroup/memory/inner/memory.stat": f"inactive_file 0\ntotal_inactive_file {MIB}\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
}


@pytest.mark.parametrize(
    ("groups", "limit", "available"),
    [
        pytest.param(VERSION_2, 8 * MIB, 3 * MIB, id="version 2, set on an outer group"),
        pytest.param(VERSION_1, 4 * MIB, 2 * MIB, id="version 1"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, None, None, id="no limit"),
        pytest.param({}, None, None, id="no groups"),
    ],
)
def test_memory_of_the_container_is_read(tmp_path: Path, groups, limit, available):
    limits = read_limits(write(tmp_path, groups))
    assert (limits.container_limit, limits.container_available) == (limit, available)


def test_the_tightest_of_several_groups_counts(tmp_path: Path):
    inner = {
        "sys/fs/cgroup/outer/inner/memory.max": f"{2 * MIB}\n",
        "sys/fs/cgroup/outer/inner/memory.current": f"{MIB}\n",
    }
    limits = read_limits(write(tmp_path, {**VERSION_2, **inner}))
    assert (limits.container_limit, limits.container_available) == (2 * MIB, MIB)


def test_limits_of_the_process_are_those_that_it_has(monkeypatch: pytest.MonkeyPatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # of what other tests have left
    limits = read_limits()
    assert limits.descriptors in (soft, None)
    assert limits.descriptors_most in (hard, None)
    with open(os.devnull):
        assert read_limits().descriptors_open == limits.descriptors_open + 1
    assert 0 < limits.memory_available < psutil.virtual_memory().total
    said = {resource.RLIMIT_NOFILE: (7, 9), resource.RLIMIT_FSIZE: (11, 11), resource.RLIMIT_AS: (2**50, 2**50)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: said.get(kind, (-1, -1)))
    limits = read_limits()
    assert (limits.descriptors, limits.descriptors_most, limits.file_bytes, limits.locked_memory) == (7, 9, 11, None)
    assert limits.address_space is not None
    assert 0 < limits.address_space < 2**50
