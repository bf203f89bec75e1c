"""The exchange alone, without SGLang: two ranks with four experts each, three tokens from every rank.

    torchrun --nproc-per-node 2 examples/exchange.py

Expert e multiplies by e + 1, so that every sum can be worked out by hand, and is: see `by_hand`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe import Exchange, ExpertRows

EXPERTS, HIDDEN, TOKENS, TOPK = 8, 64, 3, 2


def main() -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    local = EXPERTS // ranks
    report = []

    def experts(rows: ExpertRows) -> None:
        """Rows lie in the window in the order of this rank's experts; `counts` says how many each of them has."""
        begin = 0
        for expert, count in enumerate(rows.counts.tolist()):
            end = begin + count
            torch.mul(rows.rows[begin:end], rank * local + expert + 1, out=rows.out[begin:end])
            begin = end
        report.append(f"rank {rank}: rows that its experts received {rows.counts.tolist()}")

    torch.manual_seed(rank)
    x = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16)
    weights, ids = torch.rand(TOKENS, EXPERTS).softmax(dim=1).topk(TOPK)

    with Exchange.create(None, num_experts=EXPERTS, hidden=HIDDEN, max_tokens=TOKENS, topk=TOPK) as exchange:
        y = exchange.run(x, ids, weights, experts, phase="decode")

    equal = torch.equal(y, by_hand(x, ids, weights))
    report += [f"  token {token} went to experts {ids[token].tolist()}" for token in range(TOKENS)]
    report.append(f"  results {'are' if equal else 'ARE NOT'} those of a loop over the tokens, bit for bit")
    reports = [None] * ranks
    dist.all_gather_object(reports, report)
    if rank == 0:
        print("\n".join(line for lines in reports for line in lines))
    dist.destroy_process_group()
    if not equal:
        raise SystemExit(1)


def by_hand(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What every token has to come back as: its experts' results times their weights, summed in float32."""
    total = torch.zeros(x.shape)
    for k in range(TOPK):
        results = x * (ids[:, k : k + 1] + 1).to(x.dtype)
        total += weights[:, k : k + 1] * results.float()
    return total.to(x.dtype)


if __name__ == "__main__":
    main()
