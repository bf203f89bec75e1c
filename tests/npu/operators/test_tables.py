"""Writes into caches, slots of new tokens, and what of the logits may be drawn, on the emulated NPU."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.mem_cache.allocator import alloc_extend_naive
from torch import Tensor

from tests.npu.operators import modules
from tests.npu.operators.refusals import NotEmulated, WrongArguments

PAGE = 4


@pytest.fixture(scope="module", autouse=True)
def operators():
    modules.install_operators()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def reshape_and_cache(key: Tensor, value: Tensor, caches: list[Tensor], slots: Tensor) -> None:
    torch.ops.atb._npu_reshape_and_cache(
        key=key, value=value, key_cache=caches[0], value_cache=caches[1], slot_indices=slots.int()
    )


def scatter_pa(key: Tensor, value: Tensor, caches: list[Tensor], slots: Tensor) -> None:
    torch.ops.npu.npu_scatter_pa_kv_cache(key, value, *caches, slots.int(), cache_mode="Norm")


@pytest.mark.parametrize("write", [reshape_and_cache, scatter_pa])
@pytest.mark.parametrize("slots", [[], [5], [3, 4, -1, 11, 0]], ids=str)
def test_rows_go_into_their_slots(write, slots):
    """Over the border of a page; a negative slot takes none. Widths of keys and values differ."""
    key, value = numbers(len(slots), 2, 8), numbers(len(slots), 2, 6, seed=1)
    caches = [torch.full((3, PAGE, 2, width), 7.0, dtype=torch.bfloat16) for width in (8, 6)]
    write(key, value, caches, torch.tensor(slots, dtype=torch.int64))
    for cache, rows in zip(caches, (key, value), strict=True):
        expected = torch.full_like(cache, 7.0)
        for row, slot in zip(rows, slots, strict=True):
            if slot >= 0:
                expected[slot // PAGE, slot % PAGE] = row
        assert torch.equal(cache, expected)


@pytest.mark.parametrize("slots", [[], [5], [3, 8, 0]], ids=str)
def test_updates_go_to_their_indices(slots):
    table, updates = torch.zeros(9, 1, 6).bfloat16(), numbers(len(slots), 1, 6)
    found = torch.ops.npu.npu_scatter_nd_update_(table, torch.tensor(slots).view(-1, 1).int(), updates)
    assert found.data_ptr() == table.data_ptr()
    expected = torch.zeros_like(table)
    expected[torch.tensor(slots, dtype=torch.int64)] = updates
    assert torch.equal(table, expected)


def test_updates_go_to_pairs_of_indices():
    table = torch.zeros(3, 4)
    torch.ops.npu.npu_scatter_nd_update_(table, torch.tensor([[2, 1], [0, 3]]), torch.tensor([5.0, 6.0]))
    assert table.nonzero().tolist() == [[0, 3], [2, 1]]
    assert table[2, 1] == 5


def test_a_negative_index_is_no_place():
    with pytest.raises(WrongArguments, match=r"npu_scatter_nd_update_ .* a negative index, -1"):
        torch.ops.npu.npu_scatter_nd_update_(torch.zeros(3, 4), torch.tensor([[-1]]), torch.ones(1, 4))


def test_other_layouts_of_a_cache_are_not_there():
    caches = [numbers(1, PAGE, 1, 8)] * 2
    with pytest.raises(NotEmulated, match="npu_scatter_pa_kv_cache with cache_mode='PA_NZ'"):
        torch.ops.npu.npu_scatter_pa_kv_cache(numbers(1, 1, 8), numbers(1, 1, 8), *caches, torch.zeros(1).int())


# Tokens before and after.
EXTENDED = {
    "none": [],
    "fresh": [(0, 5), (0, 4), (0, 1)],
    "in a page": [(1, 3), (5, 6)],
    "over pages": [(3, 9), (4, 8), (6, 20)],
    "nothing new": [(4, 4), (2, 5)],
}


@pytest.mark.parametrize("sequences", EXTENDED.values(), ids=EXTENDED)
def test_slots_of_new_tokens_are_those_of_sglang(sequences):
    before, after = (torch.tensor([pair[side] for pair in sequences], dtype=torch.int64) for side in (0, 1))
    # Each old sequence ends in a page of its own.
    last = torch.tensor([100 * PAGE + row * PAGE + (length - 1) % PAGE if length else -1
                         for row, length in enumerate(before.tolist())], dtype=torch.int64)  # fmt: skip
    pages = torch.tensor([9, 2, 30, 4, 5, 17, 8, 1])
    count = int((after - before).sum())
    found, expected = torch.full((count,), -7), torch.full((count,), -7)
    modules.sgl_kernel_npu()["sgl_kernel_npu.mem_cache.allocator"].alloc_extend_kernel[(len(sequences),)](
        before, after, last, pages, found, 4, PAGE, 32
    )
    if sequences:
        alloc_extend_naive(before, after, last, pages, expected, PAGE, "cpu")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("batch", [0, 1, 6])
def test_only_likely_tokens_can_be_drawn(batch):
    logits = torch.randn(batch, 20, generator=torch.Generator().manual_seed(1))
    p, k = torch.linspace(0.1, 1.0, batch), torch.arange(1, batch + 1, dtype=torch.int32)
    out = torch.ops.npu.npu_top_k_top_p(logits, p, k)
    for row in range(batch):
        best = logits[row].sort(descending=True)
        probabilities = best.values[: k[row]].softmax(0)
        # As few as have the mass together.
        wanted = 1 + int((probabilities.cumsum(0) < p[row]).sum())
        kept = set(best.indices[: min(wanted, int(k[row]))].tolist())
        assert set((out[row] != -torch.inf).nonzero().flatten().tolist()) == kept
        assert torch.equal(out[row][out[row] != -torch.inf], logits[row][out[row] != -torch.inf])
