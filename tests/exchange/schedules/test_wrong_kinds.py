"""Arguments that are no tensors, or no names, are refused by name on every rank, and the exchange works afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from tests.exchange.pool import Rank
from tests.exchange.reference import RankInput, scale_by_expert
from tests.exchange.surface import IMPLEMENTATIONS, PHASES, compute, open_exchange
from tests.exchange.test_joint_refusals import CALLS, SCENARIO, SPOILED, call, require_works

PHASE_LIKE = {"list": ["decode"], "array": np.zeros(2), "None": None, "number": 3, "tensor": torch.zeros(2)}


class Wrong(NamedTuple):
    """A call's input of which one argument is of a wrong kind, and what every rank's message has to name."""

    spoil: Callable[[RankInput], RankInput]
    named: tuple[str, ...]


WRONG = {
    "x-list": Wrong(lambda given: given._replace(x=given.x.tolist()), ("x is", "list")),
    "x-array": Wrong(lambda given: given._replace(x=given.x.float().numpy()), ("x is", "ndarray")),
    "x-sparse": Wrong(lambda given: given._replace(x=given.x.to_sparse()), ("x is", "sparse_coo")),
    "x-nested": Wrong(lambda given: given._replace(x=torch.nested.nested_tensor([given.x])), ("x is", "nested")),
    "ids-list": Wrong(lambda given: given._replace(topk_ids=given.topk_ids.tolist()), ("topk_ids is", "list")),
    "ids-array": Wrong(lambda given: given._replace(topk_ids=given.topk_ids.numpy()), ("topk_ids is", "ndarray")),
    "weights-none": Wrong(lambda given: given._replace(topk_weights=None), ("topk_weights is", "NoneType")),
    "weights-array": Wrong(
        lambda given: given._replace(topk_weights=given.topk_weights.numpy()), ("topk_weights is", "ndarray")
    ),
    "weights-packed": Wrong(
        lambda given: given._replace(
            topk_weights=torch.zeros(given.topk_weights.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        ),
        ("topk_weights is", "float4"),
    ),
}


def ignore(_: object) -> None:
    """Experts that write no results."""


def require_refused(attempt: Callable[[], object], culprit: int, named: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as caught:
        attempt()
    missing = [words for words in (f"{culprit}", *named) if words not in str(caught.value)]
    if missing:
        raise AssertionError(f"{missing} not named in: {caught.value}")


def refuse_wrong_kinds(rank: Rank, implementation: str, how: str) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    culprit = rank.size - 1
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for wrong in WRONG.values():
            given = wrong.spoil(good) if rank.rank == culprit else good
            require_refused(lambda given=given: call(exchange, how, given, rank), culprit, wrong.named)
        require_works(exchange, rank)


@pytest.mark.parametrize("how", CALLS)
def test_what_is_no_dense_tensor_on_one_rank_is_refused_on_every_rank(pools, implementation, how):
    pools.run(2, refuse_wrong_kinds, implementation, how)


def refuse_phases(rank: Rank, implementation: str) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for given in PHASE_LIKE.values():
            for usual in PHASES:
                phase = given if rank.rank == 1 else usual
                # The others may be told that rank 1 began another kind of exchange, for it said of which kind none.
                refused = InvalidInput if rank.rank == 1 or usual == "decode" else (InvalidInput, ProtocolMismatch)
                with pytest.raises(refused, match=r"phase=.*decode.*prefill" if rank.rank == 1 else "rank 1"):
                    exchange.dispatch(*good, phase=phase)
                with pytest.raises(refused, match=r"phase=.*decode.*prefill" if rank.rank == 1 else "rank 1"):
                    exchange.run(*good, lambda rows: compute(rows, scale_by_expert, rank), phase=phase)
        require_works(exchange, rank)


def test_a_phase_that_is_no_name_is_refused_on_every_rank(pools, implementation):
    pools.run(2, refuse_phases, implementation)


def refuse_arguments_of_run(rank: Rank) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    culprit = 1
    with open_exchange("windows", rank, SCENARIO) as exchange:

        def run(phase: str, experts: object, out: object) -> object:
            given = (experts, out) if rank.rank == culprit else (ignore, None)
            return exchange.run(*good, given[0], phase=phase, out=given[1])

        for phase in PHASES:
            require_refused(lambda phase=phase: run(phase, None, None), culprit, ("experts is", "NoneType"))
            for out in ([], np.zeros(2), torch.zeros(2), torch.eye(3).to_sparse()):
                require_refused(lambda phase=phase, out=out: run(phase, ignore, out), culprit, ("out is",))
        require_works(exchange, rank)


def test_experts_and_results_of_a_wrong_kind_are_refused_on_every_rank(pools):
    pools.run(2, refuse_arguments_of_run)


def refuse_arguments_of_combine(rank: Rank, implementation: str) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        rows = exchange.dispatch(*good)
        compute(rows, scale_by_expert, rank)
        for wrong in (None, rows.out.tolist(), rows.out.to_sparse(), rows.out.to("meta")):
            with pytest.raises(InvalidInput, match="expert_out is"):
                exchange.combine(wrong, rows)
        for wrong in (None, rows.out, [rows]):
            with pytest.raises(InvalidInput, match=type(wrong).__name__):
                exchange.combine(rows.out, wrong)
        if implementation == "windows":
            for wrong in ([], np.zeros(2)):
                with pytest.raises(InvalidInput, match="out is"):
                    exchange.combine(rows.out, rows, out=wrong)
        exchange.combine(rows.out, rows)
        require_works(exchange, rank)


def test_combine_refuses_what_is_no_tensor_and_no_handle_and_the_handle_stays_good(pools, implementation):
    pools.run(2, refuse_arguments_of_combine, implementation)


def refuse_to_prepare(rank: Rank) -> None:
    good = SCENARIO.inputs(rank.size)[rank.rank]
    out = torch.empty_like(good.x)

    def experts(rows) -> None:
        compute(rows, scale_by_expert, rank)

    with open_exchange("windows", rank, SCENARIO) as exchange:
        for wrong in WRONG.values():
            with pytest.raises(InvalidInput, match=wrong.named[0]):
                exchange.prepare(*wrong.spoil(good), experts, out)
        with pytest.raises(InvalidInput, match="experts is"):
            exchange.prepare(*good, None, out)
        for wrong_out in (None, [], out.to("meta")):
            with pytest.raises(InvalidInput, match="out is"):
                exchange.prepare(*good, experts, wrong_out)
        exchange.prepare(*good, experts, out)()
        require_works(exchange, rank)


def test_prepare_refuses_what_is_no_tensor(pools):
    pools.run(2, refuse_to_prepare)


def what_is_said(rank: Rank, implementation: str) -> list[str]:
    """The messages that a rank meets when the other one's input is wrong in each way there is."""
    good = SCENARIO.inputs(rank.size)[rank.rank]
    said = []
    with open_exchange(implementation, rank, SCENARIO._replace(experts_per_rank=12 // rank.size)) as exchange:
        for wrong in (*SPOILED.values(), *WRONG.values()):
            with pytest.raises(InvalidInput) as caught:
                exchange.dispatch(*(wrong.spoil(good) if rank.rank == 1 else good))
            said.append(str(caught.value))
    return said


def test_the_baseline_and_the_windows_say_the_same_of_a_wrong_input(pools):
    windows, collective = (pools.run(2, what_is_said, implementation)[0] for implementation in IMPLEMENTATIONS)
    assert windows == collective
