"""How much communication memory other libraries ask for, per rank, by their own formulas.

For decode steps in which every rank brings up to `tokens` tokens and none is dropped.
"""

from __future__ import annotations

BF16_BYTES = 2


def deepep_bytes(ranks: int, experts: int, hidden: int, tokens: int) -> int:
    """DeepEP 1.2, `Buffer.get_low_latency_rdma_size_hint` (csrc/config.hpp), which does not depend on the ranks.

    Two send buffers, two receive buffers, each with a place for every token at every expert, and two signalling
    buffers: one half is read while the other is filled.
    """
    del ranks
    scales = hidden // 128
    dispatch_message = 16 + max(hidden * BF16_BYTES, hidden + scales * 4)
    combine_message = scales * 4 + hidden * BF16_BYTES
    send = max(tokens * dispatch_message, experts * tokens * combine_message)
    receive = experts * tokens * max(dispatch_message, combine_message)
    signals = _align(experts * 4, 128)
    total = 2 * (send + receive + signals)
    return (total + 128) // 128 * 128


def sgl_kernel_npu_bytes(ranks: int, experts: int, hidden: int, tokens: int, topk: int) -> int:
    """sgl-kernel-npu, the window (HCCL_BUFFSIZE) that its low-latency code checks for; two halves used in turn."""
    local_experts = experts // ranks
    combine_row = _align(hidden * BF16_BYTES, 512)
    dispatch_row = _align(hidden * BF16_BYTES + 44, 512)
    return 2 * (tokens * dispatch_row * ranks * local_experts + tokens * combine_row * topk)


def sgl_kernel_npu_documented_bytes(ranks: int, experts: int, hidden: int, tokens: int, topk: int) -> int:
    """sgl-kernel-npu, the formula of its documentation."""
    local_experts = experts // ranks
    return 2 * (tokens * ranks * min(local_experts, topk) * hidden * BF16_BYTES + 2 * 2**20)


def _align(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
