"""Handles: combined twice, two at a time, stale; and the epochs behind them."""

from __future__ import annotations

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput

from . import reference
from .bits import require_same_values
from .pool import Rank
from .reference import scale_by_expert, scale_by_place
from .scenario import Scenario
from .surface import PHASES, compute, open_after, open_exchange, require_rows

SCENARIO = Scenario(tokens=(6, 0, 11, 3), topk=3, routing="sparse")


class Call:
    """A dispatch with the answers that belong to it."""

    def __init__(self, exchange, rank: Rank, seed: int, phase: str = "decode") -> None:
        scenario = SCENARIO._replace(seed=seed)
        self._exchange, self._rank, self._seed = exchange, rank, seed
        self._inputs = scenario.inputs(rank.size)
        self._experts = scenario.num_experts(rank.size)
        self._expected_rows = reference.dispatch(self._inputs, self._experts)
        self.rows = exchange.dispatch(*self._inputs[rank.rank], phase=phase)
        self.require_rows()

    def require_rows(self) -> None:
        require_rows(self.rows, self._expected_rows[self._rank.rank], f"call {self._seed}")

    def compute(self) -> None:
        compute(self.rows, scale_by_place, self._rank)

    def require_combined(self) -> None:
        """Combine `rows.out` as `compute` left it."""
        combined = self._exchange.combine(self.rows.out, self.rows)
        require_same_values(combined, self._expected(1.0), f"call {self._seed}")

    def require_combined_copy(self, factor: float, spare_rows: int = 0) -> None:
        """Combine a tensor of our own: `factor` times what `compute` would write."""
        out = self._outs(factor)[self._rank.rank]
        spare = out.new_full((spare_rows, out.shape[1]), torch.nan)
        combined = self._exchange.combine(torch.cat([out, spare]), self.rows)
        require_same_values(combined, self._expected(factor), f"call {self._seed}, factor {factor}")

    def _outs(self, factor: float) -> list[torch.Tensor]:
        return [
            scale_by_place(rows.rows, rows.counts, rank * len(rows.counts)) * factor
            for rank, rows in enumerate(self._expected_rows)
        ]

    def _expected(self, factor: float) -> torch.Tensor:
        return reference.combine(self._inputs, self._expected_rows, self._outs(factor))[self._rank.rank]


def combine_own_tensors(rank: Rank, implementation: str, phase: str) -> None:
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for seed in range(4):
            Call(exchange, rank, seed, phase).require_combined_copy(1.0 + seed, spare_rows=seed)


@pytest.mark.parametrize("phase", PHASES)
def test_combine_takes_any_tensor_with_enough_rows(pools, implementation, ranks, phase):
    pools.run(ranks, combine_own_tensors, implementation, phase)


def combine_a_view(rank: Rank, implementation: str) -> None:
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        call = Call(exchange, rank, seed=1)
        out = call._outs(1.0)[rank.rank]
        wide = torch.cat([out, out], dim=1)
        for strided in (out.t().contiguous().t(), wide[:, : out.shape[1]]):
            combined = exchange.combine(strided, call.rows)
            require_same_values(combined, call._expected(1.0), "combine of a strided tensor")


def test_expert_out_need_not_be_contiguous(pools, implementation):
    pools.run(3, combine_a_view, implementation)


def combine_again_and_again(rank: Rank, implementation: str) -> None:
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for seed, phase in enumerate(PHASES):
            call = Call(exchange, rank, seed, phase)
            call.compute()
            call.require_combined()
            call.require_combined()
            # Each combine writes what the previous one read: were it not waited for, sums would mix.
            for repeat in range(40):
                call.require_combined_copy(1.0 + repeat)
            call.require_rows()
        Call(exchange, rank, seed=9).require_combined_copy(1.0)


def test_combining_a_handle_again_gives_the_result_of_what_was_passed_last(pools, implementation, ranks):
    pools.run(ranks, combine_again_and_again, implementation)


def hold_two_handles(rank: Rank, implementation: str, order: tuple[int, ...]) -> None:
    with open_exchange(implementation, rank, SCENARIO, slots=2) as exchange:
        for seed in range(0, 12, 2):
            calls = [Call(exchange, rank, seed, PHASES[seed % 4 // 2]), Call(exchange, rank, seed + 1, "prefill")]
            for call in calls:
                call.compute()
            for which in order:
                calls[which].require_rows()
                calls[which].require_combined()


@pytest.mark.parametrize(
    "order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 0, 1)], ids=["first-first", "last-first", "first-twice", "both-twice"]
)
def test_two_live_handles_are_combined_in_any_order(pools, implementation, ranks, order):
    pools.run(ranks, hold_two_handles, implementation, order)


def count_epochs(rank: Rank, implementation: str) -> list[int]:
    epochs = []
    with open_exchange(implementation, rank, SCENARIO, slots=2) as exchange:
        calls = [Call(exchange, rank, seed) for seed in range(2)]
        for call in calls:
            epochs.append(exchange.epoch)
            call.compute()
            call.require_combined()
        epochs.append(exchange.epoch)
    return epochs


def test_the_epoch_is_that_of_the_last_dispatch_also_after_the_combine_of_an_earlier_one(pools, implementation):
    assert pools.run(2, count_epochs, implementation) == [[2, 2, 2]] * 2


def pipeline_three_slots(rank: Rank, implementation: str) -> None:
    with open_exchange(implementation, rank, SCENARIO, slots=3) as exchange:
        live = [Call(exchange, rank, seed) for seed in range(3)]
        for seed in range(3, 15):
            oldest = live.pop(0)
            oldest.compute()
            oldest.require_combined()
            live.append(Call(exchange, rank, seed))
        for call in reversed(live):
            call.compute()
            call.require_combined()


def test_slots_are_used_in_turn(pools, implementation):
    pools.run(3, pipeline_three_slots, implementation)


def use_a_stale_handle(rank: Rank, implementation: str, slots: int) -> None:
    with open_exchange(implementation, rank, SCENARIO, slots=slots) as exchange:
        stale = Call(exchange, rank, seed=0)
        stale.compute()
        live = [Call(exchange, rank, seed) for seed in range(1, slots + 1)]
        with pytest.raises(InvalidInput, match="slots"):
            exchange.combine(stale.rows.out, stale.rows)
        for call in live:
            call.compute()
            call.require_combined()
        Call(exchange, rank, seed=9).require_combined_copy(1.0)


@pytest.mark.parametrize("slots", [1, 2], ids=lambda slots: f"{slots}slots")
def test_a_handle_whose_slot_was_dispatched_again_is_refused(pools, implementation, slots):
    pools.run(3, use_a_stale_handle, implementation, slots)


def keep_a_handle_over_a_refused_dispatch(rank: Rank, implementation: str) -> None:
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        call = Call(exchange, rank, seed=0)
        call.compute()
        x, ids, weights = SCENARIO.inputs(rank.size)[rank.rank]
        with pytest.raises(InvalidInput):
            exchange.dispatch(x, torch.full_like(ids, 10_000) if len(ids) else ids, weights)
        call.require_rows()
        call.require_combined()


def test_a_refused_dispatch_takes_no_slot(pools, implementation):
    pools.run(3, keep_a_handle_over_a_refused_dispatch, implementation)


def confuse_two_exchanges(rank: Rank, implementation: str) -> None:
    with (
        open_exchange(implementation, rank, SCENARIO) as exchange,
        open_exchange(implementation, rank, SCENARIO) as other,
    ):
        first, second = Call(exchange, rank, seed=0), Call(other, rank, seed=1)
        first.compute()
        second.compute()
        with pytest.raises(InvalidInput):
            exchange.combine(second.rows.out, second.rows)
        second.require_combined()
        first.require_combined()


def test_the_handle_of_another_exchange_is_refused(pools, implementation):
    pools.run(2, confuse_two_exchanges, implementation)


def look_at_views(rank: Rank, implementation: str) -> None:
    slots = 2
    addresses: list[tuple[int, int]] = []
    with open_exchange(implementation, rank, SCENARIO, slots=slots) as exchange:
        for seed in range(3 * slots):
            rows = Call(exchange, rank, seed).rows
            if rows.rows.shape != rows.out.shape or rows.rows.shape[1] != SCENARIO.hidden:
                raise AssertionError(f"rows are {list(rows.rows.shape)}, out is {list(rows.out.shape)}")
            if rows.scales is not None or rows.counts.dtype != torch.int64 or rows.counts.dim() != 1:
                raise AssertionError(f"scales are {rows.scales}, counts are {rows.counts}")
            if not (rows.rows.is_contiguous() and rows.out.is_contiguous()):
                raise AssertionError("rows and out have to be contiguous")
            addresses.append((rows.rows.data_ptr(), rows.out.data_ptr()))
            exchange.combine(rows.out, rows)
    if implementation == "windows" and addresses != 3 * addresses[:slots]:
        raise AssertionError(f"the slots of the window are not used in turn: {addresses}")


def test_rows_and_out_are_contiguous_and_stay_where_they_are_in_the_window(pools, implementation):
    pools.run(3, look_at_views, implementation)


def keep_results(rank: Rank, implementation: str) -> None:
    inputs = [SCENARIO._replace(seed=seed).inputs(rank.size) for seed in range(6)]
    experts = SCENARIO.num_experts(rank.size)
    results = []
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for given in inputs:
            results.append(exchange.run(*given[rank.rank], lambda rows: compute(rows, scale_by_expert, rank)))
    for seed, (given, result) in enumerate(zip(inputs, results, strict=True)):
        expected = reference.exchange(given, experts, scale_by_expert).combined[rank.rank]
        require_same_values(result, expected, f"result {seed}, looked at after the exchange was closed")


def test_results_belong_to_the_caller(pools, implementation):
    pools.run(3, keep_results, implementation)


def write_into_a_given_tensor(rank: Rank) -> None:
    inputs = SCENARIO.inputs(rank.size)
    mine = inputs[rank.rank]
    expected = reference.exchange(inputs, SCENARIO.num_experts(rank.size), scale_by_expert).combined[rank.rank]
    wide = torch.full((len(mine.x), 2 * SCENARIO.hidden), torch.nan, dtype=mine.x.dtype)
    # Rows that are not next to each other in memory.
    out = wide[:, : SCENARIO.hidden]
    with open_exchange("windows", rank, SCENARIO) as exchange:
        for phase in PHASES:
            assert exchange.run(*mine, lambda rows: compute(rows, scale_by_expert, rank), phase=phase, out=out) is out
            require_same_values(out, expected, f"run of {phase}")
            rows = exchange.dispatch(*mine, phase=phase)
            compute(rows, scale_by_expert, rank)
            assert exchange.combine(rows.out, rows, out=out.fill_(torch.nan)) is out
            require_same_values(out, expected, f"combine of {phase}")
    assert wide[:, SCENARIO.hidden :].isnan().all()


def test_results_are_written_where_the_caller_wants_them(pools, ranks):
    pools.run(ranks, write_into_a_given_tensor)


def give_a_wrong_tensor_for_results(rank: Rank) -> None:
    mine = SCENARIO.inputs(rank.size)[rank.rank]
    wrong = {
        "shape": torch.empty(len(mine.x) + 1, SCENARIO.hidden, dtype=mine.x.dtype),
        "dtype": torch.empty(len(mine.x), SCENARIO.hidden, dtype=torch.float64),
        "dense": torch.empty(len(mine.x), 2 * SCENARIO.hidden, dtype=mine.x.dtype)[:, ::2],
    }
    with open_exchange("windows", rank, SCENARIO) as exchange:
        for what, out in wrong.items():
            with pytest.raises(InvalidInput, match="out" if rank.rank else what if what == "dense" else "out is"):
                # Those of rank 0 alone are wrong; every rank hears of it.
                given = None if rank.rank else out
                exchange.run(*mine, lambda rows: compute(rows, scale_by_expert, rank), out=given)
            rows = exchange.dispatch(*mine)
            compute(rows, scale_by_expert, rank)
            with pytest.raises(InvalidInput, match="out"):
                exchange.combine(rows.out, rows, out=out)
            exchange.combine(rows.out, rows)


def test_a_wrong_tensor_for_results_is_refused_and_the_exchange_goes_on(pools):
    pools.run(3, give_a_wrong_tensor_for_results)


def cross_epochs(rank: Rank, first_epoch: int) -> None:
    inputs = SCENARIO.inputs(rank.size)
    expected = reference.exchange(inputs, SCENARIO.num_experts(rank.size), scale_by_expert)
    with open_after(first_epoch, rank, SCENARIO, slots=2) as exchange:
        for seed in range(12):
            call = Call(exchange, rank, seed, PHASES[seed % 2])
            call.compute()
            call.require_combined()
            call.require_combined()
            combined = exchange.run(
                *inputs[rank.rank], lambda rows: compute(rows, scale_by_expert, rank), phase=PHASES[seed // 2 % 2]
            )
            require_same_values(combined, expected.combined[rank.rank], f"run {seed}")


@pytest.mark.parametrize("first_epoch", [2**31 - 3, 2**32 - 3, 2**47 - 1], ids=["2^31", "2^32", "2^47"])
def test_epochs_cross_powers_of_two(pools, ranks, first_epoch):
    pools.run(ranks, cross_epochs, first_epoch)
