"""Memory that the ranks of a benchmark share, of the kind that windows are made of, and a barrier in it."""

from __future__ import annotations

import ctypes
import math
import mmap
import os

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.errors import PeerTimeout
from sglang_ascend_moe.exchange.control.cores import spin_ns_of
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.row_kernels import LINE_BYTES, Segments, Shape, library, pointers

TIMEOUT_S = 120.0


class SharedSegments:
    """One segment of `size` bytes per rank, each mapped by every rank.

    A segment is a memfd: it has no name, and is gone when the ranks are. The ranks are siblings that trust each other,
    so they find each other's descriptors under /proc instead of handing them over.
    """

    def __init__(self, group: dist.ProcessGroup, size: int) -> None:
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        own = os.memfd_create("ascend-moe-bench", os.MFD_CLOEXEC)
        os.ftruncate(own, size)
        told: list[tuple[str, set[int]]] = [("", set())] * ranks
        dist.all_gather_object(told, (f"/proc/{os.getpid()}/fd/{own}", os.sched_getaffinity(0)), group=group)
        places, cores = zip(*told, strict=True)
        self._spin_ns = spin_ns_of(cores)
        self._memories = []
        for peer, place in enumerate(places):
            descriptor = own if peer == rank else os.open(place, os.O_RDWR | os.O_CLOEXEC)
            self._memories.append(mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED))
            if peer != rank:
                os.close(descriptor)
        dist.barrier(group=group)
        os.close(own)
        self.addresses = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in self._memories]
        self.pointers = pointers(self.addresses)

    def view(self, rank: int, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The bytes of the segment of `rank` from `offset` on."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memories[rank], dtype=dtype, count=count, offset=offset).view(shape)

    def words(self, **offsets: int) -> Segments:
        """The descriptor for the kernels; these segments have to outlive it."""
        base = ctypes.cast(self.pointers, ctypes.c_void_p)
        return Segments(segments=base, timeout_ns=int(TIMEOUT_S * 1e9), spin_ns=self._spin_ns, **offsets)


class Barrier:
    """A rendezvous of all ranks in shared memory; the ranks leave it within a microsecond where each has a core."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        ranks = dist.get_world_size(group)
        self._shared = SharedSegments(group, ranks * LINE_BYTES)
        self._words = self._shared.words()
        self._shape = Shape(ranks=ranks, rank=dist.get_rank(group))

    def wait(self) -> None:
        """Raises `PeerTimeout`."""
        if library().bench_barrier(ctypes.byref(self._shape), ctypes.byref(self._words)):
            raise PeerTimeout(f"a rank did not come to the barrier within {TIMEOUT_S:g} s")


class RelayMemory:
    """Relay buffers, one segment per rank, with the flags that tell when they are filled."""

    def __init__(self, case: Case, group: dist.ProcessGroup, capacity: int) -> None:
        """`capacity`: the most rows that any rank sends to any other."""
        shape = Shape.of(case, dist.get_rank(group))
        sizes = {
            "barrier": case.ranks * LINE_BYTES,
            "arrive": case.ranks * LINE_BYTES,
            "done": case.ranks * LINE_BYTES,
            "counts": 2 * case.ranks * case.experts * 4,
            "relay": case.ranks * capacity * shape.packed_bytes,
            "back": case.ranks * capacity * shape.result_bytes,
        }
        self.offsets: dict[str, int] = {}
        position = 0
        for name, size in sizes.items():
            self.offsets[name] = position
            position += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.shared = SharedSegments(group, position)
        self.words = self.shared.words(capacity=capacity, **self.offsets)
