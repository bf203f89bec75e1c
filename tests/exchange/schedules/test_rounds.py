"""`run` in a window that is too small for one round: nothing is lost, nothing is misplaced, no bit changes."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.exchange import reference
from tests.exchange.bits import require_same_bits, require_same_values
from tests.exchange.pool import Rank
from tests.exchange.reference import scale_by_expert
from tests.exchange.rounds import window_bytes_for
from tests.exchange.scenario import Scenario
from tests.exchange.surface import compute, open_exchange

# Rows of at least a quarter page, because the regions of a window are rounded up to pages.
SCENARIOS = {
    "even": Scenario(hidden=512, tokens=(40,), topk=3),
    "uneven": Scenario(hidden=512, tokens=(1, 60, 0, 23), topk=2),
    "one-rank-brings-all": Scenario(hidden=512, tokens=(0, 0, 0, 0, 0, 0, 0, 50)),
    "sparse": Scenario(hidden=512, tokens=(50, 30), routing="sparse", topk=4),
    "all-to-one-expert": Scenario(hidden=512, tokens=(30, 20), routing="one-expert", topk=2),
    "hot-rank": Scenario(hidden=512, tokens=(40, 33), routing="hot-rank", topk=4),
    "repeated-in-token": Scenario(hidden=512, tokens=(30,), routing="repeated-in-token", topk=4),
    "more-tokens-than-plan-chunks": Scenario(hidden=512, tokens=(150, 7), routing="one-expert", topk=2),
    "special-rows": Scenario(hidden=512, tokens=(24,), rows="special", weights="special", topk=3),
    "fp32": Scenario(hidden=512, tokens=(24, 9), dtype="fp32", id_dtype="int32"),
}


def run_in_rounds(
    rank: Rank, scenario: Scenario, tokens_of_window: int | None, workers: int = 1, phase: str = "prefill"
) -> int:
    """Checks the result; returns the number of rounds. `tokens_of_window` None = the window that is made by default;
    with 2 workers rounds overlap.
    """
    options = {"workers": workers}
    if tokens_of_window is not None:
        options["window_bytes"] = window_bytes_for(rank.size, scenario, tokens=tokens_of_window)
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert)
    rounds = 0

    def experts(rows) -> None:
        nonlocal rounds
        rounds += 1
        compute(rows, scale_by_expert, rank)

    with open_exchange("windows", rank, scenario, **options) as exchange:
        for attempt in range(3):
            rounds = 0
            combined = exchange.run(*inputs[rank.rank], experts, phase=phase)
            require_same_values(combined, expected.combined[rank.rank], f"run {attempt}, {rounds} rounds")
    return rounds


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
@pytest.mark.parametrize("tokens_of_window", [1, 2, 7], ids=lambda tokens: f"window-of-{tokens}")
@pytest.mark.parametrize("ranks", [2, 3, 4], ids=lambda ranks: f"{ranks}ranks")
@pytest.mark.parametrize("workers", [1, 2], ids=["in-turn", "overlapped"])
def test_many_rounds_equal_the_reference_to_the_bit(pools, workers, ranks, scenario, tokens_of_window):
    rounds = pools.run(ranks, run_in_rounds, scenario, tokens_of_window, workers)
    assert len(set(rounds)) == 1, f"ranks took different numbers of rounds: {rounds}"


def test_eight_ranks_in_many_rounds(pools):
    rounds = pools.run(8, run_in_rounds, SCENARIOS["hot-rank"], 1)
    assert len(set(rounds)) == 1
    assert rounds[0] > 1


def plan_few_chunks(rank: Rank, chunks: int, *arguments: Any) -> int:
    """`run_in_rounds` of ranks that divide their tokens into no more chunks, as where ranks are many."""
    with patch("sglang_ascend_moe.windows.layout.MAX_PLAN_COUNTS", chunks * rank.size):
        return run_in_rounds(rank, *arguments)


@pytest.mark.parametrize("chunks", [0, 1, 3])
@pytest.mark.parametrize("name", ["more-tokens-than-plan-chunks", "hot-rank"])
def test_plans_of_few_chunks_take_rounds_too(pools, name, chunks):
    few = pools.run(3, plan_few_chunks, chunks, SCENARIOS[name], 7)
    assert len(set(few)) == 1
    assert few[0] >= pools.run(3, run_in_rounds, SCENARIOS[name], 7)[0]


def test_a_small_window_takes_many_rounds_and_a_large_one_takes_one(pools):
    scenario = SCENARIOS["all-to-one-expert"]
    few, many = (pools.run(2, run_in_rounds, scenario, tokens)[0] for tokens in (15, 1))
    assert 1 < few < many
    assert pools.run(2, run_in_rounds, scenario, None) == [1, 1]


@pytest.mark.parametrize(
    "scenario",
    [Scenario(hidden=512, tokens=(0,), max_tokens=20), Scenario(hidden=512, routing="nothing", max_tokens=20)],
    ids=["no-tokens", "nothing-routed"],
)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_experts_are_called_once_when_there_is_nothing_to_do(pools, scenario, phase):
    assert pools.run(3, run_in_rounds, scenario, 1, 1, phase) == [1, 1, 1]


@pytest.mark.parametrize("scenario", [SCENARIOS["uneven"], SCENARIOS["hot-rank"]], ids=["uneven", "hot-rank"])
@pytest.mark.parametrize("ranks", [2, 4], ids=lambda ranks: f"{ranks}ranks")
def test_every_round_shows_experts_the_right_rows_in_order(pools, implementation, ranks, scenario):
    labelled = scenario._replace(rows="labelled")
    rounds = pools.run(ranks, collect_rows_of_rounds, implementation, labelled)
    assert len(set(rounds)) == 1
    assert rounds[0] > 1 if implementation == "windows" else rounds[0] == 1


def collect_rows_of_rounds(rank: Rank, implementation: str, scenario: Scenario) -> int:
    """Rows carry their source rank and token in their first two elements, which are small enough to be exact."""
    options = {}
    if implementation == "windows":
        options["window_bytes"] = window_bytes_for(rank.size, scenario, tokens=4)
    inputs = scenario.inputs(rank.size)
    expected = reference.dispatch(inputs, scenario.num_experts(rank.size))[rank.rank]
    seen: list[list[torch.Tensor]] = [[] for _ in expected.counts]
    rounds = 0

    def experts(rows) -> None:
        nonlocal rounds
        rounds += 1
        begin = 0
        for expert, count in enumerate(rows.counts.tolist()):
            own = rows.rows[begin : begin + count].clone()
            labels = [tuple(label) for label in own[:, :2].tolist()]
            if labels != sorted(labels):
                raise AssertionError(f"round {rounds}, expert {expert}: rows are out of order: {labels}")
            seen[expert].append(own)
            begin += count
        compute(rows, scale_by_expert, rank)

    with open_exchange(implementation, rank, scenario, **options) as exchange:
        exchange.run(*inputs[rank.rank], experts, phase="prefill")

    for expert, wanted in enumerate(expected.rows.split(expected.counts.tolist())):
        got = torch.cat(seen[expert])
        # Rounds are cut by source tokens, so a stable sort by (source, token) restores the order of a single round.
        order = sorted(range(len(got)), key=lambda row: (got[row, 0].item(), got[row, 1].item()))
        require_same_bits(got[order], wanted, f"rows of expert {expert} over {rounds} rounds")
    return rounds
