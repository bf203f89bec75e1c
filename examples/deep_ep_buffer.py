"""Code that was written for DeepEP, on this package's Buffer: low-latency mode, then normal mode.

    torchrun --nproc-per-node 2 examples/deep_ep_buffer.py

Only the import and the group (gloo) differ from a client of DeepEP. Expert e multiplies by e + 1.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.deep_ep import Buffer, Config

EXPERTS, HIDDEN, TOKENS, TOPK = 8, 512, 16, 2


def main() -> None:
    dist.init_process_group("gloo")
    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    x = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16)
    weights, ids = torch.rand(TOKENS, EXPERTS).softmax(dim=1).topk(TOPK)

    buffer = Buffer(
        group,
        num_nvl_bytes=Config().get_nvl_buffer_size_hint(HIDDEN * x.element_size(), ranks),
        num_rdma_bytes=Buffer.get_low_latency_rdma_size_hint(TOKENS, HIDDEN, ranks, EXPERTS),
        low_latency_mode=True,
        explicitly_destroy=True,
    )
    results = {"low latency": low_latency(buffer, x, ids, weights), "normal": normal(buffer, x, ids, weights)}
    buffer.destroy()

    expected = by_hand(x, ids, weights)
    off = {mode: ((y.float() - expected).abs().max() / expected.abs().max()).item() for mode, y in results.items()}
    lines = [None] * ranks
    dist.all_gather_object(
        lines, [f"rank {rank}, {mode}: {TOKENS} tokens came back, off by {off[mode]:.2%}" for mode in off]
    )
    if rank == 0:
        print("\n".join(line for of_rank in lines for line in of_rank))
        print(
            "off: the largest difference from a sum by hand in float32, of the largest result; bfloat16 rounds by 0.4%"
        )
    dist.destroy_process_group()
    if max(off.values()) > 0.01:
        raise SystemExit(1)


def low_latency(buffer: Buffer, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Decode: a row for each expert of a token; the sum applies the weights."""
    rows, counts, handle, _, hook = buffer.low_latency_dispatch(
        x, ids, TOKENS, EXPERTS, use_fp8=False, return_recv_hook=True
    )
    hook()  # until then the rows of other ranks are under way, and this rank may compute
    local = len(counts)
    results = buffer.get_next_low_latency_combine_buffer(handle)
    for expert, count in enumerate(counts.tolist()):
        torch.mul(rows[expert, :count], buffer.rank * local + expert + 1, out=results[expert, :count])
    combined, _, hook = buffer.low_latency_combine(results, ids, weights, handle, zero_copy=True, return_recv_hook=True)
    hook()
    return combined


def normal(buffer: Buffer, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Prefill: a row for each rank of a token; the rank applies its experts and their weights."""
    per_rank, per_rdma_rank, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, EXPERTS)
    rows, row_ids, row_weights, _, handle, _ = buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        num_tokens_per_rdma_rank=per_rdma_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        topk_idx=ids,
        topk_weights=weights,
    )
    # Ids count from this rank's first expert; those of other ranks are -1, with weight 0.
    first = buffer.rank * EXPERTS // buffer.group_size
    factors = (row_weights * (row_ids + first + 1)).sum(dim=1, keepdim=True)
    combined, _, _ = buffer.combine((rows.float() * factors).to(rows.dtype), handle)
    return combined


def by_hand(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What every token has to come back as, in float32."""
    return x.float() * (weights * (ids + 1)).sum(dim=1, keepdim=True)


if __name__ == "__main__":
    main()
