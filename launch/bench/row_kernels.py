"""The ctypes binding of `kernels/include/bench_rows.h`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.native.library import own_library

LINE_BYTES = 64
SCALE_BYTES = 16
STORES = {"memcpy": 0, "rep movsb": 1, "streaming AVX2": 2, "streaming AVX-512": 3}

_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_BF16 = 0


class Shape(ctypes.Structure):
    """`BenchShape`: see there. Results are bfloat16."""

    _fields_ = [
        (name, _u32) for name in ("ranks", "rank", "experts", "topk", "hidden", "element", "quantised", "streaming")
    ]

    @classmethod
    def of(cls, case: Case, rank: int, *, streaming: bool = False) -> Shape:
        return cls(
            ranks=case.ranks, rank=rank, experts=case.experts, topk=case.topk, hidden=case.hidden, element=_BF16,
            quantised=case.dtype == "int8", streaming=streaming,
        )  # fmt: skip

    @property
    def result_bytes(self) -> int:
        """Of one result."""
        return int(self.hidden) * 2

    @property
    def packed_bytes(self) -> int:
        """Of one row on its way to an expert."""
        return int(self.hidden) + SCALE_BYTES if self.quantised else self.result_bytes


class Segments(ctypes.Structure):
    """`BenchSegments`: see there."""

    _fields_ = [
        ("segments", _pointer),
        ("timeout_ns", _u64),
        ("spin_ns", _u64),
        *((name, _u64) for name in ("barrier", "arrive", "done", "counts", "relay", "back", "capacity", "epoch")),
    ]


class _Tokens(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in ("x", "ids", "weights", "positions", "counts")] + [("tokens", _u32)]


class Piece(ctypes.Structure):
    """`BenchPiece`: a copy of `bytes` bytes."""

    _fields_ = [("to", _pointer), ("source", _pointer), ("bytes", _u64)]


class Tokens:
    """`BenchTokens`, and the memory for what becomes of them, which is used again for every batch."""

    def __init__(self, case: Case) -> None:
        self.positions = torch.empty(case.tokens, case.topk, dtype=torch.int64)
        self.counts = torch.empty(case.experts, dtype=torch.int32)
        self.struct = _Tokens(positions=self.positions.data_ptr(), counts=self.counts.data_ptr(), tokens=case.tokens)
        self.reference = ctypes.byref(self.struct)

    def take(self, x: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Points at tensors that have to outlive their use."""
        self.struct.x, self.struct.ids, self.struct.weights = x.data_ptr(), ids.data_ptr(), weights.data_ptr()


@cache
def library() -> ctypes.CDLL:
    """The kernels; the interpreter goes on while they run. Raises `Unsupported` if they are not built."""
    loaded = ctypes.CDLL(own_library("cpu"))
    for name, arguments in {
        "bench_count": 2, "bench_pack": 3, "bench_quantise": 4, "bench_restore": 5, "bench_return": 4,
        "bench_reduce": 4,
    }.items():  # fmt: skip
        function = getattr(loaded, name)
        function.argtypes, function.restype = [_pointer] * arguments, None
    loaded.bench_experts.argtypes = [_pointer, _pointer, _pointer, _u64, _u64, _pointer]
    loaded.bench_experts.restype = None
    loaded.bench_barrier.argtypes = [_pointer] * 2
    loaded.bench_relay_dispatch.argtypes = [_pointer] * 7
    loaded.bench_relay_combine.argtypes = [_pointer] * 7
    loaded.bench_store_available.argtypes = [_u32]
    loaded.bench_copy.argtypes, loaded.bench_copy.restype = [_u32, _pointer, _u32], None
    return loaded


def pointers(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (_pointer * len(addresses))(*addresses)


def available_stores() -> list[str]:
    """Names of the stores that this processor has."""
    return [name for name, store in STORES.items() if library().bench_store_available(store)]


def stand_in_experts(shape: Shape, rows: Tensor, scales: Tensor | None, total: int, out: Tensor) -> None:
    """As experts would: reads the first `total` rows, with their scales if they are quantised, and writes results."""
    pointer, stride = (None, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    library().bench_experts(ctypes.byref(shape), rows.data_ptr(), pointer, stride, total, out.data_ptr())
