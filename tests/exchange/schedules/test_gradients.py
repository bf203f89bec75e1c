"""An exchange gives no gradients, whatever experts and inputs ask for, and works in the grad modes of its callers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from tests.exchange import reference
from tests.exchange.bits import require_same_values
from tests.exchange.pool import Rank
from tests.exchange.scenario import Scenario
from tests.exchange.surface import PHASES, open_exchange

SCENARIO = Scenario(tokens=(6, 0, 4), dtype="fp32")


def exchange_with_parameters(rank: Rank, implementation: str, opened: str, used: str) -> None:
    inputs = SCENARIO.inputs(rank.size)
    expected = reference.exchange(inputs, SCENARIO.num_experts(rank.size), lambda rows, *_: rows * 2).combined
    x, ids, weights = inputs[rank.rank]
    factor = torch.nn.Parameter(torch.tensor(2.0))

    def experts(rows: ExpertRows) -> None:
        total = int(rows.counts.sum())
        assert rows.out.grad_fn is None, "carries the history of a call before"
        rows.out[:total] = rows.rows[:total] * factor

    with mode(opened):
        exchange = open_exchange(implementation, rank, SCENARIO)
    with exchange, mode(used):
        # Float64 weights are converted on the way.
        given = x.clone().requires_grad_(), ids, weights.double().requires_grad_()
        for phase in PHASES * 2:
            results = [exchange.run(*given, experts, phase=phase)]
            rows = exchange.dispatch(*given, phase=phase)
            assert not rows.rows.requires_grad
            assert not rows.out.requires_grad
            experts(rows)
            results.append(exchange.combine(rows.out, rows))
            results.append(exchange.combine(rows.out * 1, rows))
            for result in results:
                assert not result.requires_grad
                require_same_values(result, expected[rank.rank], phase)
            rows = exchange.dispatch(*given, phase=phase)
            torch.mul(rows.rows, 2, out=rows.out)
            require_same_values(exchange.combine(rows.out, rows), expected[rank.rank], f"{phase}: out=")


def mode(name: str) -> AbstractContextManager[object]:
    return {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}[name]()


@pytest.mark.parametrize(
    ("opened", "used"),
    [("grad", "grad"), ("inference", "grad"), ("inference", "no_grad"), ("grad", "inference")],
    ids=lambda name: name,
)
def test_experts_with_parameters_leave_no_history_in_the_window(pools, implementation, opened, used) -> None:
    pools.run(3, exchange_with_parameters, implementation, opened, used)
