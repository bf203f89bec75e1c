"""Operators on the emulated NPU return the CPU's bits, however late its streams run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from tests.npu import emulated
from tests.npu.operator_calls import CALLS, Values

SEEDS = (emulated.SEED_AT_ONCE, emulated.SEED_WHEN_AWAITED, 3)


def described(result: Any) -> list[Any]:
    """Everything about a result but where it lies."""

    def leaf(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        values = item.cpu()
        return item.dtype, tuple(item.shape), bytes(values.contiguous().reshape(-1).view(torch.uint8).tolist())

    leaves, form = tree_flatten(result)
    return [str(form), *map(leaf, leaves)]


def both(name: str) -> tuple[list[Any], list[Any]]:
    return described(CALLS[name](Values("npu"))), described(CALLS[name](Values("cpu")))


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_returns_the_bits_of_the_cpu(on_device: Callable[..., Any], name: str):
    for seed in SEEDS:
        result, expected = on_device(both, name, seed=seed)
        assert result == expected, f"with seed {seed}"


def product_of_two_dtypes() -> bool:
    """Matrix units take them; the CPU does not, and is given both factors in the wider one."""
    rows, weights = torch.randn(5, 8), torch.randn(4, 8).bfloat16()
    product = torch.nn.functional.linear(rows.to("npu"), weights.to("npu"))
    return torch.equal(product.cpu(), torch.nn.functional.linear(rows, weights.float()))


def test_a_product_of_two_dtypes_is_that_of_the_wider_one(on_device: Callable[..., Any]):
    assert on_device(product_of_two_dtypes, seed=emulated.SEED_WHEN_AWAITED)


def many_streams(seed: int) -> list[bool]:
    """A long chain over several streams that hand values to each other, against the same on the CPU."""
    torch.manual_seed(seed)
    streams = [torch.npu.Stream() for _ in range(4)]
    x = torch.randn(16, 16)
    on_npu, on_cpu = x.to("npu"), x.clone()
    for step in range(60):
        stream = streams[(step * step) % 4]
        stream.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(stream):
            made = torch.softmax(on_npu @ on_npu.t(), dim=-1)
            on_npu = made - made.mean()
        on_npu.record_stream(stream)
        torch.npu.current_stream().wait_stream(stream)
        on_cpu = torch.softmax(on_cpu @ on_cpu.t(), dim=-1)
        on_cpu = on_cpu - on_cpu.mean()
    return torch.equal(on_npu.cpu(), on_cpu)


@pytest.mark.parametrize("seed", [0, -1, 1, 2, 3, 4])
def test_values_that_streams_hand_over_with_events_are_right_with_every_seed(on_device: Callable[..., Any], seed: int):
    assert on_device(many_streams, seed, seed=seed)
