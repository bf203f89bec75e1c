"""What a step computes twice is computed once, and nothing else is left out."""

import numpy as np
import pytest
import torch

from sglang_ascend_moe import launches
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.tape import record
from tests.graph_capture.test_tape import assert_replays


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


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


def test_what_a_launch_writes_is_not_shared():
    x = torch.randn(4, 4)

    def step():
        first, second = x + 1, x + 1
        launches.launch(lambda part: lambda: part.mul_(2), [], [first[1:]])
        return [first * 1, second * 1]

    assert_replays(step, x)


def test_what_is_drawn_at_random_is_drawn_again():
    tape = record(lambda: torch.stack([torch.rand(4), torch.rand(4)]), Arena())
    first, second = tape.replay()
    assert not torch.equal(first, second)


X = torch.randn(4, 4)
COUNTS = torch.arange(16).view(4, 4)
COMPLEX = torch.randn(4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        pytest.param(lambda: X + 1, lambda: X.t() + 1, X, id="strides"),
        pytest.param(lambda: X[:2, 0] + 1, lambda: X[0, :2] + 1, X, id="strides of a vector"),
        pytest.param(lambda: X[0].sum(), lambda: X[0, :2].sum(), X, id="shape"),
        pytest.param(lambda: X[0] + 1, lambda: X[1] + 1, X, id="place"),
        pytest.param(lambda: X + 1, lambda: X.view(torch.int32) + 1, X, id="dtype"),
        pytest.param(lambda: COUNTS + 1, lambda: COUNTS + 1.0, COUNTS, id="type of a number"),
        pytest.param(lambda: COMPLEX.clone(), lambda: COMPLEX.conj().clone(), COMPLEX, id="conjugate"),
        pytest.param(lambda: COMPLEX.imag.clone(), lambda: COMPLEX.conj().imag.clone(), COMPLEX, id="negative"),
    ],
)
def test_operators_on_different_arguments_are_both_run(first, second, values):
    # Read once more, because what a step returns is never shared.
    assert_replays(lambda: [item.contiguous() * 1 for item in (first(), second())], values)


def test_memory_that_two_arrays_of_numpy_share_is_one():
    numbers = np.zeros(64, dtype=np.float32)
    whole, part, x = torch.from_numpy(numbers), torch.from_numpy(numbers[16:]), torch.randn(48)

    def step():
        part.copy_(x)
        before = whole * 2
        part.add_(1.0)
        return whole * 2 - before

    tape = record(step, Arena())
    assert torch.equal(tape.replay(), step())
    assert tape.result.sum() == 96


def test_memory_beside_what_is_written_is_still_read_once():
    numbers = np.zeros(64, dtype=np.float32)
    parts = [torch.from_numpy(numbers[begin : begin + 16]) for begin in (0, 16, 32)]

    def step():
        before = [part * 2 for part in parts]
        parts[1].add_(1.0)
        return [one + part * 2 for one, part in zip(before, parts, strict=True)]

    # Four products, of which the middle one runs twice; an addition into it, and three sums.
    assert len(record(step, Arena())) == 8
