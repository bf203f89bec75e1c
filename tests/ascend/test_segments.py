"""Prefill gives every core a segment that moves equally many bytes, however uneven the routing is."""

from __future__ import annotations

import pytest

from tests.exchange.pool import Rank

from .cost_sheet import Costs, Shape, costs_with

SHAPE = Shape(tokens=600, hidden=64, phase="prefill")
CORES = 8


def costs_of_routing(rank: Rank, library: str, routing: str) -> Costs:
    given = SHAPE.scenario().inputs(rank.size)[rank.rank]
    ids = given.topk_ids
    match routing:
        case "one-expert":
            ids.fill_(3)
        case "second-half-unrouted":
            ids[len(ids) // 2 :] = -1
        case "fewer-ids-from-token-to-token":
            for token in range(len(ids)):
                ids[token, 8 - 8 * token // len(ids) :] = -1
        case "a-few-tokens-only":
            ids[5:-40] = -1
    return costs_with(rank, library, CORES, SHAPE, given)


@pytest.mark.parametrize(
    "routing",
    ["even", "one-expert", "second-half-unrouted", "fewer-ids-from-token-to-token", "a-few-tokens-only"],
)
def test_segments_of_prefill_move_equally_many_bytes(pools, library, routing):
    for dispatch, combine in pools.run(2, costs_of_routing, library, routing):
        assert dispatch.stored == dispatch.least_stored
        assert combine.loaded == combine.least_loaded
        # Shares end with rows of this size.
        row = 2 * SHAPE.hidden
        assert dispatch.is_even(["stored_row_bytes"], 8 * row)
        assert combine.is_even(["loaded_row_bytes", "stored_row_bytes"], 9 * row)
