"""Large zeros take no memory before they are used, and are zeros all the same."""

import psutil
import pytest
import torch

from sglang_ascend_moe.serving.host.untouched_memory import LEAST_BYTES, UntouchedZeros

LARGE = 2**28


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_zeros_take_memory_only_where_they_are_written():
    before = resident()
    with UntouchedZeros() as zeros:
        tensor = torch.zeros(LARGE, dtype=torch.uint8)
    assert resident() - before < LARGE // 8
    tensor[: LARGE // 2].fill_(1)
    assert LARGE // 4 < resident() - before < LARGE
    assert zeros.allocated == LARGE


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("shape", [(1024, 2048), (3, 700_001)], ids=["even", "odd"])
def test_they_are_zeros_of_the_shape_and_dtype(dtype: torch.dtype, shape: tuple[int, ...]):
    with UntouchedZeros():
        tensor = torch.zeros(shape, dtype=dtype, device="cpu")
    assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
    assert not tensor.view(torch.uint8).any()
    assert tensor.is_contiguous()


def test_sizes_may_be_given_one_by_one_and_by_name():
    with UntouchedZeros() as zeros:
        first, second = torch.zeros(1024, 1024), torch.zeros(size=(1024, 1024))
    assert first.shape == second.shape == (1024, 1024)
    assert zeros.allocated == 2 * 4 * 2**20


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(LEAST_BYTES - 1, dtype=torch.uint8),
        lambda: torch.zeros(LEAST_BYTES, device="meta"),
        lambda: torch.ones(LEAST_BYTES),
        lambda: torch.zeros(LEAST_BYTES, out=torch.empty(LEAST_BYTES)),
    ],
    ids=["small", "another device", "ones", "into a tensor"],
)
def test_everything_else_is_made_as_ever(make):
    with UntouchedZeros() as zeros:
        tensor = make()
    assert zeros.allocated == 0
    assert tensor.shape[0] in (LEAST_BYTES - 1, LEAST_BYTES)


def test_gradients_are_kept_where_they_are_asked_for():
    with UntouchedZeros():
        assert torch.zeros(LEAST_BYTES, requires_grad=True).requires_grad
