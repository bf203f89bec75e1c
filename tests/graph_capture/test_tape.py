"""A tape computes, replay after replay, what the step it was recorded from would compute."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple

import msgspec
import pytest
import torch
from hypothesis import example, given, settings

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.operator_calls import Reference
from sglang_ascend_moe.graph_capture.tape import _Binding, record
from sglang_ascend_moe.graph_capture.trees import leaves
from tests.graph_capture import refused_steps
from tests.graph_capture.programs import INSTRUCTIONS, fresh_inputs, programs, run
from tests.graph_capture.refused_steps import AT_ONCE, REFUSED, SHAPE


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def load(inputs, seed):
    """Put new values where a tape reads them."""
    for name, value in fresh_inputs(seed).items():
        inputs[name].copy_(value)


def assert_replays(step, *inputs):
    """The tape of `step` gives what the step gives for other values of `inputs`. Returns the tape."""
    tape = record(step, Arena())
    for seed in range(3):
        for value in inputs:
            kind = torch.complex64 if value.is_complex() else torch.float32
            value.copy_(torch.randn(value.shape, dtype=kind, generator=torch.Generator().manual_seed(seed)) * 100)
        found, wanted = leaves(tape.replay()), leaves(step())
        assert len(found) == len(wanted)
        assert all(map(torch.equal, found, wanted))
    return tape


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
    "case", [*(case for case in REFUSED if case.words == SHAPE), *AT_ONCE], ids=lambda case: case.title
)
def test_a_step_that_a_replay_cannot_stand_for_is_refused_as_by_the_guard(case):
    with pytest.raises(CaptureRefused) as refusal:
        record(case.step, Arena())
    message = str(refusal.value)
    assert f" at {refused_steps.__file__}:{case.line} " in message
    assert case.operator in message
    assert case.words in message


def test_a_value_that_is_read_is_refused():
    with pytest.raises(CaptureRefused, match=r"aten._local_scalar_dense at .*test_tape.py:\d+ waits for the device"):
        record(lambda: float(torch.ones(2).sum()), Arena())


def add_into_an_empty_tensor(x):
    out = torch.empty(0)
    torch.add(x, 5, out=out)
    return x + out


def resize_in_place(x):
    return torch.empty(4).resize_(8, 8).copy_(x)


def resize_the_memory(_):
    y = torch.empty(4)
    y.untyped_storage().resize_(256)
    return y * 2


def resize_in_a_launch(x):
    out = torch.empty(0)
    launches.launch(lambda source, out: lambda: torch.add(source, 1, out=out), [x], [out])


@pytest.mark.parametrize(
    ("step", "operator"),
    [
        (add_into_an_empty_tensor, "aten.add"),
        (resize_in_place, "aten.resize_"),
        (resize_the_memory, "aten.mul"),
        (resize_in_a_launch, "a launch"),
    ],
)
def test_a_tensor_that_the_step_makes_larger_is_refused(step, operator):
    x = torch.randn(8, 8)
    with pytest.raises(CaptureRefused, match=rf"{operator} at .*test_tape.py:\d+ makes a tensor of the step larger"):
        record(lambda: step(x), Arena())


def test_a_tensor_is_never_bound_behind_its_memory():
    binding = _Binding({0: torch.empty(64, dtype=torch.uint8)[:16]})
    fitting = Reference(0, torch.float32, (2, 2), (1, 2), 0, False, False)
    assert binding.resolve(fitting).shape == (2, 2)
    assert binding.resolve(msgspec.structs.replace(fitting, offset=9, size=(0, 2))).numel() == 0
    for change in ({"offset": 1}, {"stride": (2, 2)}, {"dtype": torch.float64}):
        with pytest.raises(CaptureRefused, match="lies outside its 16 bytes"):
            binding.resolve(msgspec.structs.replace(fitting, **change))


def test_conjugates_and_negatives_stay_so():
    x = torch.randn(8, dtype=torch.complex64)

    def step():
        y = x * (1 + 2j)
        return {
            "product": y.conj() * 2,
            "conjugate": y.conj(),
            "negative": y.conj().imag,
            "sum": y.conj().imag + y.real,
        }

    assert_replays(step, x)


def test_views_in_place_cost_nothing_and_are_not_repeated():
    x = torch.randn(4, 2)

    def step():
        return (x * 2).unsqueeze_(0).t_().add_(1) if x.dim() == 1 else (x * 2).unsqueeze_(0).squeeze_(0).t_().add_(1)

    tape = record(step, Arena())
    assert len(tape) == 2
    for _ in range(100):
        assert torch.equal(tape.replay(), step())


class Pair(NamedTuple):
    first: torch.Tensor
    second: list[torch.Tensor]


LIBRARY.define("nested(Tensor x) -> (Tensor, Tensor[])")
LIBRARY.impl("nested", lambda x: (x + 1, [x + 2, x + 3]), "CPU")


def test_named_tuples_and_nested_results_are_written_by_every_replay():
    x = torch.randn(4)

    def step():
        one, (two, three) = torch.ops.ascend_moe_tests.nested(x)
        return {"pair": Pair(one + two, [three * 1]), "nested": [one, two], "topk": torch.topk(x, 2)}

    tape = record(step, Arena())
    x.normal_()
    found, wanted = tape.replay(), step()
    assert type(found["pair"]) is Pair
    assert found["topk"].indices.equal(wanted["topk"].indices)
    assert all(map(torch.equal, leaves(found), leaves(wanted)))


@pytest.mark.parametrize("kind", [SimpleNamespace, OrderedDict])
def test_a_result_that_may_hide_tensors_is_refused(kind):
    with pytest.raises(CaptureRefused, match=f"returns an object of {kind.__name__}"):
        record(lambda: {"a": [torch.ones(1), kind(tensor=torch.ones(1))]}, Arena())


LIBRARY.define("mul_(Tensor(a!) self, Tensor other) -> Tensor(a!)")
LIBRARY.impl("mul_", lambda total, x: total.sub_(x), "CPU")


def test_an_operator_is_not_replayed_by_a_function_of_torch_that_runs_another():
    x = torch.randn(4)
    assert_replays(lambda: torch.ops.ascend_moe_tests.mul_(x * 1, x + 1), x)


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
