"""Padded windows, and calls in two parts: what a send and a receive do when other calls come in between."""

from __future__ import annotations

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.exchange.schedules.inputs import RoutedTokens
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.codes import Step
from tests.exchange import reference
from tests.exchange.bits import require_same_bits, require_same_values
from tests.exchange.pool import Rank
from tests.exchange.reference import RankRows, scale_by_place
from tests.exchange.scenario import Scenario
from tests.exchange.surface import PHASES, open_exchange

SCENARIO = Scenario(tokens=(6, 0, 11, 3), topk=2, routing="distinct")
PADDED = {"layout": "padded", "distinct_topk": True}


def packed(tensor: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
    """The valid rows of a tensor that is padded as `rows.rows`."""
    by_expert = tensor.view(len(rows.counts), -1, *tensor.shape[1:])
    return torch.cat([by_expert[expert][:count] for expert, count in enumerate(rows.counts.tolist())])


def require_padded(rows: ExpertRows, expected: RankRows) -> None:
    require_same_bits(rows.counts, expected.counts, "counts")
    require_same_bits(packed(rows.rows, rows), expected.rows, "rows")


def padded(results: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
    """`results` of the valid rows, laid out as `rows.out`, NaN elsewhere."""
    laid_out = torch.full_like(rows.out, torch.nan)
    packed_results = results.split(rows.counts.tolist())
    for expert, result in zip(laid_out.view(len(rows.counts), -1, laid_out.shape[1]), packed_results, strict=True):
        expert[: len(result)] = result
    return laid_out


def exchange_padded(rank: Rank, phase: str) -> None:
    with open_exchange("windows", rank, SCENARIO, slots=2, **PADDED) as exchange:
        for seed in range(4):
            inputs = SCENARIO._replace(seed=seed).inputs(rank.size)
            expected = reference.dispatch(inputs, SCENARIO.num_experts(rank.size))
            rows = exchange.dispatch(*inputs[rank.rank], phase=phase)
            require_padded(rows, expected[rank.rank])
            outs = [
                scale_by_place(each.rows, each.counts, place * len(each.counts)) for place, each in enumerate(expected)
            ]
            combined = exchange.combine(padded(outs[rank.rank], rows), rows)
            require_same_values(combined, reference.combine(inputs, expected, outs)[rank.rank], f"seed {seed}")


@pytest.mark.parametrize("phase", PHASES)
def test_experts_rows_begin_where_a_padded_window_says(pools, ranks, phase):
    pools.run(ranks, exchange_padded, phase)


def look_at_tokens(rank: Rank) -> None:
    inputs = SCENARIO.inputs(rank.size)
    with open_exchange("windows", rank, SCENARIO, **PADDED) as exchange:
        rows = exchange.dispatch(*inputs[rank.rank])
        tokens = packed(exchange._steps.source_tokens(rows), rows).tolist()
        origins = reference.dispatch(inputs, SCENARIO.num_experts(rank.size))[rank.rank].origins
        assert tokens == [token for _, token, _ in origins]


def test_a_padded_row_knows_its_token(pools):
    pools.run(3, look_at_tokens)


def send_and_receive_crosswise(rank: Rank) -> None:
    steps_seen: list[Step] = []
    inputs = [SCENARIO._replace(seed=seed).inputs(rank.size) for seed in range(2)]
    expected = [reference.dispatch(given, SCENARIO.num_experts(rank.size)) for given in inputs]
    with open_exchange("windows", rank, SCENARIO, slots=2, **PADDED) as exchange:
        exchange.watch_steps(steps_seen.append)
        steps = exchange._steps
        sent = []
        for given in inputs:
            x, ids, weights = given[rank.rank]
            x = x.clone()
            sent.append(steps.dispatch_send(RoutedTokens(x, ids, weights)))
            x.fill_(torch.nan)
        assert Step.ARRIVALS not in steps_seen
        for number in (1, 0):
            steps.dispatch_receive(sent[number])
            require_padded(sent[number], expected[number][rank.rank])
        outs = [
            [scale_by_place(rows.rows, rows.counts, place * len(rows.counts)) for place, rows in enumerate(each)]
            for each in expected
        ]
        for number in (0, 1):
            steps.combine_send(padded(outs[number][rank.rank], sent[number]), sent[number])
        assert Step.REDUCE not in steps_seen
        for number in (1, 0):
            out = torch.empty_like(inputs[number][rank.rank].x)
            steps.combine_receive(sent[number], out)
            wanted = reference.combine(inputs[number], expected[number], outs[number])[rank.rank]
            require_same_values(out, wanted, f"call {number}")


def test_two_calls_are_received_in_another_order_than_sent(pools, ranks):
    pools.run(ranks, send_and_receive_crosswise)


def leave_out_every_row_once(rank: Rank) -> None:
    inputs = SCENARIO.inputs(rank.size)
    given = RoutedTokens(*inputs[rank.rank])
    expected = reference.dispatch(inputs, SCENARIO.num_experts(rank.size))
    outs = [scale_by_place(rows.rows, rows.counts, place * len(rows.counts)) for place, rows in enumerate(expected)]
    nowhere = torch.full_like(given.ids, -1, dtype=torch.int64)
    with open_exchange("windows", rank, SCENARIO, **PADDED) as exchange:
        steps = exchange._steps
        # The arguments of every second dispatch are used again, in both ways that they are filled in.
        for positions, row_bytes in ((nowhere, 0), (nowhere, 0), (None, 0), (None, exchange.parameters.row_bytes)):
            rows = steps.dispatch_send(given, row_bytes=row_bytes)
            steps.dispatch_receive(rows)
            steps.combine_send(padded(outs[rank.rank], rows), rows, positions=positions)
            out = torch.empty_like(given.x)
            steps.combine_receive(rows, out)
            wanted = reference.combine(inputs, expected, outs)[rank.rank]
            require_same_values(out, wanted if positions is None else torch.zeros_like(out), "the sums")


def test_positions_that_a_combine_was_given_end_with_it(pools):
    pools.run(2, leave_out_every_row_once)


def move_the_beginning_of_rows(rank: Rank) -> None:
    scenario = SCENARIO._replace(hidden=64)
    inputs = scenario.inputs(rank.size)
    with open_exchange("windows", rank, scenario, **PADDED) as exchange:
        steps = exchange._steps
        for _ in range(2):
            rows = steps.dispatch_send(RoutedTokens(*inputs[rank.rank]), row_bytes=64)
            steps.dispatch_receive(rows)
            expected = reference.dispatch(inputs, scenario.num_experts(rank.size))[rank.rank]
            received = packed(rows.rows, rows)
            require_same_bits(received[:, :32].contiguous(), expected.rows[:, :32].contiguous(), "what was moved")
            assert not received[:, 32:].any()
            steps.combine(rows.out, rows, torch.empty_like(inputs[rank.rank].x))


def test_a_dispatch_moves_as_many_bytes_of_each_row_as_it_is_told(pools):
    pools.run(3, move_the_beginning_of_rows)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"layout": "padded"}, InvalidInput, "distinct_topk=True"),
        ({**PADDED, "verify": True}, Unsupported, "verify=True"),
    ],
    ids=["repeated-experts", "verified"],
)
def test_what_a_padded_window_cannot_hold_is_refused(pools, options, error, named):
    pools.run(2, create_refused, options, error, named)


def create_refused(rank: Rank, options: dict, error: type, named: str) -> None:
    with pytest.raises(error, match=named):
        open_exchange("windows", rank, SCENARIO, **options)
