"""What this machine lets a process have, and whether the windows of an exchange fit into it.

Windows are anonymous shared memory (memfd): the size of /dev/shm does not bound them, but the memory of the machine and
of the container does, and the limits of the process.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.windows.layout import WindowMemory

MIB = 2**20
# Of `struct rlimit`: no limit. Python says -1 here, some kernels the largest number.
_UNLIMITED = (-1, 2**64 - 1, 2**63 - 1)


class MachineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that hold for this process. Bytes, or numbers of descriptors; None where there is no limit.

    memory_available: what the kernel can still give (MemAvailable). container_limit, container_available: of the
    control group with the least left, page cache that can be dropped counted as free. file_bytes: RLIMIT_FSIZE, which
    holds for anonymous shared memory too. address_space: what RLIMIT_AS leaves. locked_memory: RLIMIT_MEMLOCK.
    descriptors: RLIMIT_NOFILE as it is; descriptors_most: as far as the process may raise it; descriptors_open: in use.
    """

    memory_available: int
    container_limit: int | None
    container_available: int | None
    file_bytes: int | None
    address_space: int | None
    locked_memory: int | None
    descriptors: int | None
    descriptors_most: int | None
    descriptors_open: int


class Demand(NamedTuple):
    """What the exchanges of one server need: `ranks` of this host, each with a window for every one of `windows`."""

    ranks: int
    windows: tuple[WindowMemory, ...]

    @property
    def bytes_per_rank(self) -> int:
        return sum(window.total for window in self.windows)

    @property
    def descriptors(self) -> int:
        return descriptors_needed(self.ranks, len(self.windows))


def descriptors_needed(ranks: int, exchanges: int = 1) -> int:
    """Most descriptors that one rank has open for its exchanges at a time.

    Of each exchange every window and the process of every peer; of the one that is being opened besides, a socket and a
    passing descriptor for every peer, and a listener.
    """
    return 2 * ranks * (exchanges + 1) + 1


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def memfd_obstacle() -> str:
    """Why no window can be made in this process; empty if one can."""
    try:
        descriptor = os.memfd_create("ascend-moe-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return str(error)
    os.close(descriptor)
    return ""


def read_limits(root: Path = Path("/")) -> MachineLimits:
    """The limits of this process; `root` holds `proc` and `sys` with its control groups, which psutil does not know."""
    container = min(_containers(root), key=lambda found: found.available, default=None)
    descriptors, most = (_unless_unlimited(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    space = _unless_unlimited(resource.getrlimit(resource.RLIMIT_AS)[0])
    process = psutil.Process()
    return MachineLimits(
        memory_available=psutil.virtual_memory().available,
        container_limit=None if container is None else container.limit,
        container_available=None if container is None else container.available,
        file_bytes=_unless_unlimited(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        address_space=None if space is None else max(0, space - process.memory_info().vms),
        locked_memory=_unless_unlimited(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        descriptors=descriptors,
        descriptors_most=most,
        # Without the one that lists them.
        descriptors_open=process.num_fds() - 1,
    )


def refuse_what_does_not_fit(demand: Demand, limits: MachineLimits) -> None:
    """Raise `Unsupported`, naming the limit and the flags to change, if `demand` exceeds one of `limits`."""
    total = demand.bytes_per_rank * demand.ranks
    windows = f"{demand.ranks} ranks with windows of {demand.bytes_per_rank} bytes each"
    smaller = (
        "Lower --ascend-moe-window-bytes (prefill then takes more rounds), --chunked-prefill-size or"
        " --max-running-requests"
    )
    for place, available in (
        ("this machine (MemAvailable)", limits.memory_available),
        ("the container (control group)", limits.container_available),
    ):
        if available is not None and total > available:
            raise Unsupported(
                f"{windows} need {total} bytes, and {place} has {available} left. {smaller}, or give it"
                f" {-(-(total - available) // MIB)} MiB more"
            )
    largest = max(window.total for window in demand.windows)
    if limits.file_bytes is not None and largest > limits.file_bytes:
        raise Unsupported(
            f"a window of {largest} bytes exceeds the file size limit of {limits.file_bytes} bytes (RLIMIT_FSIZE),"
            f" which holds for shared memory too. Raise it (ulimit -f unlimited). Or: {smaller}"
        )
    if limits.address_space is not None and total > limits.address_space:
        raise Unsupported(
            f"{windows} need {total} bytes of address space, and RLIMIT_AS leaves {limits.address_space}. Raise it"
            f" (ulimit -v unlimited). Or: {smaller}"
        )
    needed = limits.descriptors_open + demand.descriptors
    if limits.descriptors is not None and needed > limits.descriptors:
        raise Unsupported(
            f"an exchange of {demand.ranks} ranks needs {demand.descriptors} file descriptors besides the"
            f" {limits.descriptors_open} that are open, and RLIMIT_NOFILE is {limits.descriptors}. Raise it"
            f" (ulimit -n {needed}) or lower --tp-size"
        )


class _Container(NamedTuple):
    limit: int
    available: int


def _containers(root: Path) -> Iterator[_Container]:
    """Every control group around this process that limits its memory, of both versions."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(path.lstrip("/"))
        for inner in (group, *group.parents):
            found = _container(folder / inner, *names)
            if found is not None:
                yield found


def _container(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> _Container | None:
    limit, used = _text(folder / limit_name).strip(), _text(folder / usage_name).strip()
    # `max` is version 2's word for none, a number beyond any memory that of version 1.
    if not limit.isdecimal() or not used.isdecimal() or int(limit) >= 2**60:
        return None
    caches = [line.split()[1] for line in _text(folder / "memory.stat").splitlines() if line.startswith(cache_name)]
    in_use = int(used) - int(caches[0] if caches else 0)
    return _Container(int(limit), max(0, int(limit) - in_use))


def _text(path: Path) -> str:
    """What a file says; nothing if it is not there or not for us to read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _unless_unlimited(limit: int) -> int | None:
    return None if limit in _UNLIMITED else limit
