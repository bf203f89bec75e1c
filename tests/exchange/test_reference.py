"""The executable specification against a case worked out by hand."""

from __future__ import annotations

import torch

from . import reference
from .reference import RankInput


def test_reference_agrees_with_a_case_worked_out_by_hand():
    inputs = [
        RankInput(
            torch.tensor([[1.0, 10.0], [2.0, 20.0]], dtype=torch.bfloat16),
            torch.tensor([[3, 0], [-1, 3]]),
            torch.tensor([[0.5, 2.0], [9.0, -1.0]]),
        ),
        RankInput(
            torch.tensor([[4.0, 40.0], [torch.nan, torch.nan]], dtype=torch.bfloat16),
            torch.tensor([[0, 0], [-1, -1]]),
            torch.tensor([[1.0, 0.25], [1.0, 1.0]]),
        ),
    ]
    first, second = reference.dispatch(inputs, num_experts=4)
    assert first.origins == [(0, 0, 1), (1, 0, 0), (1, 0, 1)]
    assert first.counts.tolist() == [3, 0]
    assert first.rows.tolist() == [[1, 10], [4, 40], [4, 40]]
    assert second.origins == [(0, 0, 0), (0, 1, 1)]
    assert second.counts.tolist() == [0, 2]

    combined = reference.combine(inputs, [first, second], [first.rows + 1, second.rows * 2])
    assert combined[0].tolist() == [[0.5 * 2 + 2.0 * 2, 0.5 * 20 + 2.0 * 11], [-4.0, -40.0]]
    assert combined[1].tolist() == [[5.0 + 0.25 * 5, 41.0 + 0.25 * 41], [0.0, 0.0]]


def test_product_and_sum_are_rounded_separately():
    # 1 + 2**-12 squared is 1 + 2**-11 + 2**-24. The product rounds the last term away, so the sum is zero.
    # A fused multiply-add would keep it.
    value = 1 + 2.0**-12
    inputs = [
        RankInput(
            torch.ones((1, 1), dtype=torch.float32),
            torch.tensor([[0, 1]]),
            torch.tensor([[1.0, value]]),
        )
    ]
    rows = reference.dispatch(inputs, num_experts=2)
    outs = [torch.tensor([[-(1 + 2.0**-11)], [value]])]
    assert reference.combine(inputs, rows, outs)[0].tolist() == [[0.0]]
