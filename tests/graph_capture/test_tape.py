"""A tape computes, replay after replay, what the step it was recorded from would compute."""

import pytest
import torch
from hypothesis import example, given, settings

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.tape import record
from tests.graph_capture.programs import INSTRUCTIONS, fresh_inputs, programs, run


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def load(inputs, seed):
    """Put new values where a tape reads them."""
    for name, value in fresh_inputs(seed).items():
        inputs[name].copy_(value)


def assert_replays_equal_eager(program, arena, *, replays):
    inputs, reference = fresh_inputs(0), fresh_inputs(0)
    tape = record(lambda: run(program, inputs), arena)
    recorded = {name: value.clone() for name, value in tape.result.items()}
    for name, wanted in run(program, reference).items():
        assert torch.equal(recorded[name], wanted), name
    for seed in range(1, replays + 1):
        if seed % 2:
            load(inputs, seed)
            load(reference, seed)
        found, wanted = tape.replay(), run(program, reference)
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), (name, seed)
        assert torch.equal(inputs["cache"], reference["cache"])


@settings(max_examples=25, deadline=None)
@given(programs)
@example(sorted(INSTRUCTIONS))
def test_replay_equals_eager_for_any_program(program):
    assert_replays_equal_eager(program, Arena(), replays=4)


@settings(max_examples=10, deadline=None)
@given(programs, programs)
def test_tapes_that_share_an_arena_do_not_disturb_each_other(first, second):
    arena = Arena()
    inputs, others = fresh_inputs(0), fresh_inputs(1)
    tapes = [record(lambda: run(first, inputs), arena), record(lambda: run(second, others), arena)]
    reference, other_reference = fresh_inputs(0), fresh_inputs(1)
    run(first, reference)
    run(second, other_reference)
    for number in (0, 1, 1, 0, 1):
        found = tapes[number].replay()
        wanted = run(*((first, reference) if number == 0 else (second, other_reference)))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_ten_thousand_replays_equal_eager():
    inputs, reference = fresh_inputs(0), fresh_inputs(0)
    program = ["residual", "write cache"]
    tape = record(lambda: run(program, inputs), Arena())
    run(program, reference)
    for _ in range(10_000):
        tape.replay()
    for _ in range(10_000):
        wanted = run(program, reference)
    assert torch.equal(tape.result["last"], wanted["last"])
    assert torch.equal(inputs["cache"], reference["cache"])


def test_results_keep_their_addresses():
    inputs = fresh_inputs(0)
    tape = record(lambda: run(["linear", "gate"], inputs), Arena())
    addresses = {name: value.data_ptr() for name, value in tape.result.items()}
    for _ in range(3):
        assert {name: value.data_ptr() for name, value in tape.replay().items()} == addresses


def test_views_cost_nothing_at_replay():
    inputs = fresh_inputs(0)
    tape = record(lambda: inputs["x"].view(2, -1).t()[1:].unsqueeze(0).expand(3, -1, -1), Arena())
    assert len(tape) == 0


def test_a_constant_that_the_step_changes_is_made_again_at_every_replay():
    def step():
        counter = torch.tensor([1.0])
        counter += 1
        return counter

    tape = record(step, Arena())
    assert [float(tape.replay()) for _ in range(3)] == [2.0, 2.0, 2.0]


LIBRARY = torch.library.Library("ascend_moe_tests", "FRAGMENT")
LIBRARY.define("add_and_double(Tensor(a!) total, Tensor x) -> Tensor")
LIBRARY.impl("add_and_double", lambda total, x: (total.add_(x), 2 * x)[1], "CPU")


def scale_with_noise(total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # A third between equal bounds: nothing is random, and there is a form with `out`.
    return torch.ops.aten.rrelu_with_noise(x, total, 1 / 3, 1 / 3, True)


@pytest.mark.parametrize(
    "operator", [torch.ops.ascend_moe_tests.add_and_double, scale_with_noise], ids=["no-out-form", "out-form"]
)
def test_an_operator_that_changes_an_argument_also_makes_its_result_at_every_replay(operator):
    x, total, reference = torch.randn(4), torch.ones(4), torch.ones(4)
    tape = record(lambda: operator(total, x) + 1, Arena())
    operator(reference, x)
    for _ in range(3):
        x.normal_()
        assert torch.equal(tape.replay(), operator(reference, x) + 1)
        assert torch.equal(total, reference)


@pytest.mark.parametrize(
    ("step", "operator"),
    [
        pytest.param(lambda x: float(x.sum()), "item", id="value to the host"),
        pytest.param(lambda x: x.nonzero(), "nonzero", id="shape of values"),
        pytest.param(lambda x: x[x > 0], "aten.index.Tensor", id="mask as index"),
        pytest.param(lambda x: torch.unique(x), "_unique2", id="unique"),
    ],
)
def test_a_step_that_a_replay_cannot_stand_for_is_refused(step, operator):
    x = torch.randn(4, 4)
    with pytest.raises(CaptureRefused, match=operator):
        record(lambda: step(x), Arena())


def test_a_launch_reads_the_values_of_each_replay():
    counts, rows = torch.tensor([2]), torch.arange(6.0)

    def first_rows(count, source, out):
        def run():
            out.zero_()
            out[: int(count)] = source[: int(count)]

        return run

    def step():
        source, out = rows + 1, torch.empty(6)
        launches.launch(first_rows, [counts, source], [out])
        return out * 10

    tape = record(step, Arena())
    assert tape.result.tolist() == [10, 20, 0, 0, 0, 0]
    counts.fill_(4)
    assert tape.replay().tolist() == [10, 20, 30, 40, 0, 0]


def test_a_launch_is_bound_once_to_addresses_that_stay():
    bound = []

    def bind(source, out):
        bound.append((source.data_ptr(), out.data_ptr()))
        return lambda: out.copy_(source)

    def step():
        out = torch.empty(6)
        launches.launch(bind, [torch.arange(6.0)], [out])
        return out

    tape = record(step, Arena())
    tape.replay()
    tape.replay()
    # Once for the step itself, once for all replays.
    assert len(bound) == 2
    assert bound[1][1] == tape.result.data_ptr()


def test_what_a_step_computes_twice_is_computed_once():
    x, cache = torch.randn(4, 4), torch.zeros(4, 4)

    def step():
        masks = [torch.arange(4)[None] >= torch.arange(4)[:, None] for _ in range(3)]
        first = torch.where(masks[0], x, x.new_zeros(())) + torch.where(masks[1], x, x.new_zeros(()))
        before = cache * 2
        cache.add_(first)
        # The same operator on what has changed in between, and one whose result is changed.
        return {"sum": before + cache * 2, "changed": (x + 1).mul_(3), "again": x + 1, "mask": masks[2]}

    tape = record(step, Arena())
    # Of 21 operators five aranges, a comparison, a zero and a choice are left out; what is returned is never shared.
    assert len(tape) == 13
    for _ in range(3):
        x.normal_()
        before = cache.clone()
        found = {name: value.clone() for name, value in tape.replay().items()}
        cache.copy_(before)
        for name, wanted in step().items():
            assert torch.equal(found[name], wanted), name
