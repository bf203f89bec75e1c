"""`collective`: gloo's all-to-all between torch permutations, the baseline schedule of this package."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_ascend_moe import ExpertRows
from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.collective_exchange import CollectiveExchange
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.delivery_check import exchange_problem, quantise
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Variant


class _Handle:
    """A dispatch. `back` is what combine takes."""

    def __init__(self, batch: Batch, rows: Tensor, scales: Tensor | None, back: ExpertRows | None) -> None:
        self.batch = batch
        self.rows = rows
        self.scales = scales
        self.back = back


class Collective(Variant):
    """`CollectiveExchange`. That has no int8: there rows are quantised with torch, and an int8 row travels with its
    scale as one opaque row of half as many bfloat16."""

    def __init__(self, case: Case, ranks: Ranks) -> None:
        self._case = case
        common = {"num_experts": case.experts, "max_tokens": case.tokens, "topk": case.topk, "dtype": torch.bfloat16}
        self._exchange = CollectiveExchange.create(ranks.group, hidden=case.hidden, **common)
        if case.dtype == "int8":
            # The scale, and as much padding as the exchange wants for its hidden size.
            self._row_bytes = (case.hidden // 32 + 1) * 32
            self._opaque = CollectiveExchange.create(ranks.group, hidden=self._row_bytes // 2, **common)

    def dispatch(self, batch: Batch) -> _Handle:
        if self._case.dtype == "bf16":
            back = self._exchange.dispatch(batch.x, batch.ids, batch.weights, phase=self._case.phase)
            return _Handle(batch, back.rows, None, back)
        hidden = self._case.hidden
        quantised = quantise(batch.x)
        opaque = torch.empty(self._case.tokens, self._row_bytes, dtype=torch.int8)
        opaque[:, :hidden] = quantised.values
        opaque[:, hidden : hidden + 4] = quantised.scales.view(torch.int8).view(-1, 4)
        rows = self._opaque.dispatch(opaque.view(torch.bfloat16), batch.ids, batch.weights, phase=self._case.phase)
        arrived = rows.rows.view(torch.int8)
        scales = arrived[:, hidden : hidden + 4].contiguous().view(torch.float32).squeeze(1)
        return _Handle(batch, arrived[:, :hidden].contiguous(), scales, None)

    def arrived(self, handle: _Handle) -> Arrived:
        if handle.back is None:
            # The way back of int8 rows: that of the same tokens in bfloat16. Not timed.
            batch = handle.batch
            handle.back = self._exchange.dispatch(batch.x, batch.ids, batch.weights, phase=self._case.phase)
        return Arrived(handle.rows, handle.scales, handle.back.out)

    def computed(self, handle: _Handle) -> None:
        if handle.back is not None:
            handle.rows = torch.empty(0)
            handle.back = handle.back._replace(rows=handle.rows)

    def combine(self, handle: _Handle) -> Tensor:
        if handle.back is None:
            raise InvalidInput("combine comes after arrived")
        return self._exchange.combine(handle.back.out, handle.back)

    def problem(self, case: Case, ranks: Ranks, batch: Batch) -> str | None:
        return exchange_problem(self, case, ranks, batch)
