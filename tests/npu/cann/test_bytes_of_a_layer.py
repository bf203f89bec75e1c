"""What an MoE layer moves on an emulated NPU: rows go through the exchange and the experts, and are copied nowhere.

The layer is ours, the experts SGLang's. No NPU has run this.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sglang_ascend_moe import launches
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.graph_capture.guard import DryRuns
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import layer
from tests.exchange.pool import Rank
from tests.npu.cann.test_exchange_on_npu import device_of
from tests.npu.device.library import native
from tests.serving.npu.layers import EXPERT_HIDDEN, EXPERTS, HIDDEN, TOPK, never, npu_layer, serve, tokens_of

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(300)]

RANKS, MAX_TOKENS = 2, 16
LOCAL_EXPERTS = EXPERTS // RANKS
ELEMENT, COUNT, SCALE = 2, 8, 4
"""Bytes of bfloat16, of an expert's count, and of the scale of a row."""

CONTROL = {"allocation", "copy from the host", "copy to the host"}
"""Of what is counted with bytes: arguments and verdicts, which are as many for any number of tokens, and memory."""

Work = dict[str, tuple[int, int]]
"""Calls by name, and the bytes that they read and write."""


def experts_of(rows: int) -> Work:
    """What the experts do with as many rows."""
    gate_and_up = rows * HIDDEN + LOCAL_EXPERTS * 2 * EXPERT_HIDDEN * HIDDEN + rows * 2 * EXPERT_HIDDEN
    down = rows * EXPERT_HIDDEN + LOCAL_EXPERTS * EXPERT_HIDDEN * HIDDEN + rows * HIDDEN
    counts = LOCAL_EXPERTS * COUNT
    activation = rows * 3 * EXPERT_HIDDEN * ELEMENT + counts + rows * SCALE
    return {
        "npu::npu_grouped_matmul": (1, gate_and_up * ELEMENT + counts),
        "sgl_kernel_npu::swiglu_quant": (1, activation),
        # Into the window.
        "aclnnGroupedMatmulV5": (1, down * ELEMENT + counts),
    }


class Counting:
    """What the NPU has had to do since this was made."""

    def __init__(self) -> None:
        torch.npu.synchronize()
        self._since = native().counters()

    def work(self) -> Work:
        now = native().counters()
        changed = {
            name: tuple(one - before for one, before in zip(counted, self._since.get(name, (0, 0)), strict=True))
            for name, counted in now.items()
        }
        return {name: counted for name, counted in changed.items() if counted[0]}


def count_layers(rank: Rank, batches: list[int], in_graph: bool, weights: str | None = None) -> list[tuple[int, Work]]:
    """For each batch the rows that this rank got, or could get in a graph, and what the layer had it do."""
    device = device_of(rank)
    quant = "int8" if weights else None
    with pytest.MonkeyPatch.context() as patch, open_exchange(rank, device, quant) as exchange:
        moe = on_device(npu_layer(RANKS, rank.rank, weights=weights), device)
        serve(patch, moe, exchange, Options(schedule="decode", quant=quant or "none"), on_npu=True)
        return [count_layer(moe, exchange, rank, batch, device, in_graph) for batch in batches]


def open_exchange(rank: Rank, device: torch.device, quant: str | None) -> Exchange:
    return Exchange.create(
        rank.group, num_experts=EXPERTS, hidden=HIDDEN, max_tokens=MAX_TOKENS, topk=TOPK, distinct_topk=True,
        device=device, quant=quant,
    )  # fmt: skip


def on_device(moe: Any, device: torch.device) -> Any:
    for name, value in vars(moe).copy().items():
        if isinstance(value, torch.nn.Parameter):
            setattr(moe, name, torch.nn.Parameter(value.to(device), requires_grad=False))
    return moe


def count_layer(
    moe: Any, exchange: Exchange, rank: Rank, tokens: int, device: torch.device, in_graph: bool
) -> tuple[int, Work]:
    x, routed = tokens_of(rank.rank, tokens)
    x, routed.topk_ids, routed.topk_weights = (
        tensor.to(device) for tensor in (x, routed.topk_ids, routed.topk_weights)
    )
    for _ in range(3):
        layer.forward(never, moe, x, routed)
    if not in_graph:
        counting = Counting()
        layer.forward(never, moe, x, routed)
        work = counting.work()
        return int(exchange.counts_matrix.sum()), work
    dry = DryRuns(lambda: layer.forward(never, moe, x, routed), 2, into_launches=True)
    for _ in range(dry.total):
        dry.run()
    assert dry.findings == []
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph), launches.capture():
        layer.forward(never, moe, x, routed)
    counting = Counting()
    graph.replay()
    work = counting.work()
    exchange.check_replays()
    return RANKS * tokens * min(TOPK, LOCAL_EXPERTS), work


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "in-a-graph"])
def test_rows_move_by_the_exchange_and_the_experts_alone(npu_ranks, in_graph):
    batches = [3, MAX_TOKENS]
    for counted in npu_ranks.run(RANKS, count_layers, batches, in_graph, deadline_s=200):
        for rows, work in counted:
            assert rows > 0
            assert (work["moe_dispatch"][0], work["moe_combine"][0]) == (1, 1)
            moved = {name: done for name, done in work.items() if done[1] and name not in CONTROL}
            assert moved == experts_of(rows)
        (_, small), (_, large) = counted
        for name in ("copy from the host", "copy to the host"):
            assert small.get(name) == large.get(name)


@pytest.mark.parametrize("weights", ["W8A8_DYNAMIC", "W4A8_DYNAMIC"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "in-a-graph"])
def test_int8_rows_and_their_scales_are_moved_by_nothing_else(npu_ranks, in_graph, weights):
    for counted in npu_ranks.run(RANKS, count_layers, [3, MAX_TOKENS], in_graph, weights, deadline_s=200):
        for rows, work in counted:
            moved = {name: done[0] for name, done in work.items() if done[1] and name not in CONTROL}
            assert moved == dict.fromkeys(experts_of(rows), 1)
