"""`relay-free`: this package's exchange."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_ascend_moe import Exchange, ExpertRows
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.delivery_check import exchange_problem
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.shared_memory import TIMEOUT_S
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Variant


class RelayFree(Variant):
    """Rows go straight into the windows of other ranks; results are read out of them."""

    def __init__(self, case: Case, ranks: Ranks) -> None:
        self._phase = case.phase
        self._combined = torch.empty(case.tokens, case.hidden, dtype=torch.bfloat16)
        self._exchange = Exchange.create(
            ranks.group, num_experts=case.experts, hidden=case.hidden, max_tokens=case.tokens, topk=case.topk,
            dtype=torch.bfloat16, quant="int8" if case.dtype == "int8" else None, timeout_s=TIMEOUT_S,
        )  # fmt: skip

    def dispatch(self, batch: Batch) -> ExpertRows:
        return self._exchange.dispatch(batch.x, batch.ids, batch.weights, phase=self._phase)

    def arrived(self, handle: ExpertRows) -> Arrived:
        return Arrived(handle.rows, handle.scales, handle.out)

    def combine(self, handle: ExpertRows) -> Tensor:
        return self._exchange.combine(handle.out, handle, out=self._combined)

    def problem(self, case: Case, ranks: Ranks, batch: Batch) -> str | None:
        return exchange_problem(self, case, ranks, batch)

    def close(self) -> None:
        self._exchange.close()
        super().close()
