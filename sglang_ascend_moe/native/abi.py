"""The C structs of `kernels/include/exchange.h`, field by field."""

from __future__ import annotations

import ctypes

import msgspec

from sglang_ascend_moe.windows.layout import Regions, WindowLayout

ABI_VERSION = 3
REFUSAL_BYTES = 256
_ELEMENTS = {"bfloat16": 0, "float16": 1, "float32": 2}

u32, u64, i64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p
STEP_HOOK = ctypes.CFUNCTYPE(ctypes.c_int32, u32)


class Layout(ctypes.Structure):
    _fields_ = [
        *((name, u32) for name in (
            "abi_version", "ranks", "experts", "hidden", "topk", "max_tokens", "slots", "element", "distinct_topk",
            "count_units", "verify", "quantised",
        )),
        *((name, u64) for name in (
            "capacity", "expert_rows", "row_bytes", "out_row_bytes", "mailbox_bytes", *Regions.__struct_fields__,
            "total_bytes",
        )),
    ]  # fmt: skip


class Fault(ctypes.Structure):
    _fields_ = [("result", u32), ("culprit", u32), ("step", u32), ("cause", u32), ("epoch", u64), ("detail", i64)]


class Interpreter(ctypes.Structure):
    _fields_ = [("release", pointer), ("acquire", pointer), ("check_signals", pointer)]


class Session(ctypes.Structure):
    _fields_ = [
        ("layout", ctypes.POINTER(Layout)), ("windows", pointer), ("peer_pidfds", pointer), ("missing", pointer),
        ("ended", pointer), ("waited_ns", pointer), ("on_step", STEP_HOOK), ("interpreter", Interpreter),
        ("timeout_ns", u64), ("workers", u32), ("reserved", u32), ("rank", u32), ("step", u32), ("epoch", u64),
        ("fault", Fault), ("refusal", ctypes.c_char * REFUSAL_BYTES),
    ]  # fmt: skip


class Dispatch(ctypes.Structure):
    _fields_ = [
        ("x", pointer), ("x_stride", u64), ("ids", pointer), ("ids_bytes", u32), ("tokens", u32), ("kind", u32),
        ("part", u32), ("continues", u32), ("slot", u32), ("positions", pointer), ("counts", pointer),
        ("matrix", pointer), ("weights", pointer), ("kept_weights", pointer), ("epoch", u64), ("first_row", u64),
        ("total", u64), ("row_bytes", u64),
    ]  # fmt: skip


class Combine(ctypes.Structure):
    _fields_ = [
        ("positions", pointer), ("weights", pointer), ("out", pointer), ("out_stride", u64), ("epoch", u64),
        ("first_row", u64), ("total", u64), ("tokens", u32), ("slot", u32), ("part", u32), ("reserved", u32),
    ]  # fmt: skip


class Call(ctypes.Structure):
    """Of `kernels/python/calls.cpp`."""

    _fields_ = [
        ("dispatch", Dispatch), ("combine", Combine), ("session", pointer), ("run_dispatch", pointer),
        ("run_combine", pointer),
    ]  # fmt: skip


class Plan(ctypes.Structure):
    _fields_ = [
        ("block", ctypes.c_char_p), ("block_bytes", u32), ("tokens", u32), ("input_error", u32), ("reserved", u32),
        ("detail", i64), ("lengths", pointer), ("blocks", pointer),
    ]  # fmt: skip


def native_layout(layout: WindowLayout) -> Layout:
    """The layout as kernels receive it."""
    p = layout.parameters
    return Layout(
        abi_version=ABI_VERSION, ranks=p.ranks, experts=p.num_experts, hidden=p.hidden, topk=p.topk,
        max_tokens=p.max_tokens, slots=p.slots, element=_ELEMENTS[p.dtype], distinct_topk=p.distinct_topk,
        count_units=layout.count_units, verify=p.verify, quantised=p.quant is not None, capacity=layout.capacity,
        expert_rows=layout.expert_rows, row_bytes=p.row_bytes, out_row_bytes=p.out_row_bytes,
        mailbox_bytes=layout.mailbox_bytes, total_bytes=layout.total_bytes, **msgspec.structs.asdict(layout.offsets),
    )  # fmt: skip
