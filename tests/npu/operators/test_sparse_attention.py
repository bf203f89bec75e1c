"""The indexer and sparse attention of the emulated NPU against plain loops in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.npu.operators.modules import install_operators
from tests.npu.operators.refusals import NotEmulated, WrongArguments

PAGE, PAGES, WIDTH, LATENT, ROPE, HEADS, COUNT = 16, 9, 128, 512, 64, 4, 8
SCALE = 0.05
# Rows and keys of each sequence.
BATCHES = {
    "prefill": [(5, 5), (20, 20)],
    "after a prefix": [(3, 40), (1, 17)],
    "decode": [(1, 1), (1, 33), (1, 8)],
    "padded": [(1, 0), (1, 12)],
    "drafts": [(3, 21), (3, 10)],
}


@pytest.fixture(scope="module", autouse=True)
def operators():
    install_operators()


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers, of which sums are exact and often equal."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Batch:
    """Sequences whose keys lie in pages of no order; `rows` are all rows, with `padding` more of no sequence."""

    def __init__(self, name: str, padding: int = 0) -> None:
        self.sequences = BATCHES[name]
        self.rows = sum(rows for rows, _ in self.sequences) + padding
        self.ends = torch.tensor([rows for rows, _ in self.sequences]).cumsum(0).int()
        self.lengths = torch.tensor([keys for _, keys in self.sequences], dtype=torch.int32)
        pages = torch.randperm(PAGES, generator=torch.Generator().manual_seed(3)).int()
        self.table = torch.zeros(len(self.sequences), 3, dtype=torch.int32)
        for row, (_, keys) in enumerate(self.sequences):
            needed = -(-keys // PAGE)
            self.table[row, :needed], pages = pages[:needed], pages[needed:]

    def arguments(self, lengths: str) -> dict[str, Any]:
        return {
            "actual_seq_lengths_query": self.ends, lengths: self.lengths, "block_table": self.table,
            "layout_query": "TND",
        }  # fmt: skip

    def indexer(self) -> dict[str, Any]:
        return {
            "query": whole(self.rows, HEADS, WIDTH), "key": whole(PAGES, PAGE, 1, WIDTH, seed=1),
            "weights": whole(self.rows, HEADS, seed=2), "layout_key": "PA_BSND", "sparse_count": COUNT,
            "sparse_mode": 3, **self.arguments("actual_seq_lengths_key"),
        }  # fmt: skip

    def attention(self, picked: Tensor) -> dict[str, Any]:
        latent = numbers(PAGES, PAGE, 1, LATENT, seed=5)
        return {
            "query": numbers(self.rows, HEADS, LATENT, seed=4), "key": latent, "value": latent,
            "query_rope": numbers(self.rows, HEADS, ROPE, seed=6),
            "key_rope": numbers(PAGES, PAGE, 1, ROPE, seed=7), "sparse_indices": picked, "scale_value": SCALE,
            "layout_kv": "PA_BSND", "attention_mode": 2, "sparse_mode": 3,
            **self.arguments("actual_seq_lengths_kv"),
        }  # fmt: skip

    def tokens(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """Row, how many keys it sees, and where each key of its sequence lies: page and place in it."""
        found, begin = [], 0
        for own, (rows, keys) in zip(self.table.tolist(), self.sequences, strict=True):
            places = [(own[key // PAGE], key % PAGE) for key in range(keys)]
            found += [(begin + row, max(0, keys - rows + row + 1), places) for row in range(rows)]
            begin += rows
        return found


def picked_plainly(batch: Batch, given: dict[str, Any]) -> Tensor:
    out = torch.full((batch.rows, 1, COUNT), -1, dtype=torch.int32)
    for row, seen, places in batch.tokens():
        scores = []
        for key in range(min(seen, len(places))):
            products = given["query"][row].float() @ given["key"][places[key]][0].float()
            scores.append(float((products.clamp(min=0) * given["weights"][row].float()).sum()))
        best = sorted(range(len(scores)), key=lambda key: (-scores[key], key))[:COUNT]
        out[row, 0, : len(best)] = torch.tensor(best, dtype=torch.int32)
    return out


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("padding", [0, 2])
def test_each_row_gets_the_best_keys_that_it_sees(name, padding):
    batch = Batch(name, padding)
    given = batch.indexer()
    picked, values = torch.ops.npu.npu_lightning_indexer(**given)
    real = int(batch.ends[-1])
    assert torch.equal(picked[:real], picked_plainly(batch, given)[:real])
    assert (picked[real:] == 0).all()
    assert values.numel() == 0


def test_without_a_mask_every_row_sees_every_key():
    batch = Batch("after a prefix")
    causal = torch.ops.npu.npu_lightning_indexer(**batch.indexer())[0]
    every = torch.ops.npu.npu_lightning_indexer(**batch.indexer() | {"sparse_mode": 0})[0]
    assert torch.equal(every[[2, 3]], causal[[2, 3]])
    assert not torch.equal(every[:2], causal[:2])


def attended_plainly(batch: Batch, given: dict[str, Any]) -> Tensor:
    out = torch.zeros(batch.rows, HEADS, LATENT)
    for row, seen, places in batch.tokens():
        chosen = [places[key] for key in given["sparse_indices"][row, 0].tolist() if 0 <= key < seen]
        if not chosen:
            continue
        latent = torch.stack([given["key"][place][0].float() for place in chosen])
        turned = torch.stack([given["key_rope"][place][0].float() for place in chosen])
        scores = given["query"][row].float() @ latent.t() + given["query_rope"][row].float() @ turned.t()
        out[row] = (scores * SCALE).softmax(dim=-1) @ latent
    return out


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("padding", [0, 2])
def test_each_row_attends_to_the_keys_that_were_picked(name, padding):
    batch = Batch(name, padding)
    given = batch.attention(torch.ops.npu.npu_lightning_indexer(**batch.indexer())[0])
    out, *statistics = torch.ops.npu.npu_sparse_flash_attention(**given)
    real = int(batch.ends[-1])
    # Sums lie on the border between two numbers of 16 bits now and then.
    assert torch.allclose(out[:real].float(), attended_plainly(batch, given)[:real], rtol=2**-7, atol=1e-3)
    assert out[real:].isnan().all()
    assert [tensor.numel() for tensor in statistics] == [0, 0]


def test_keys_ahead_of_a_row_are_passed_over_and_a_row_without_keys_is_zero():
    batch = Batch("prefill")
    ahead = torch.full((batch.rows, 1, 2), -1, dtype=torch.int32)
    ahead[:5, 0, 0], ahead[5:, 0, 0] = 4, 19
    out = torch.ops.npu.npu_sparse_flash_attention(**batch.attention(ahead))[0]
    assert out.any(dim=-1).any(dim=-1).nonzero().flatten().tolist() == [4, 24]
    every = torch.ops.npu.npu_sparse_flash_attention(**batch.attention(ahead) | {"sparse_mode": 0})[0]
    assert every.any(dim=-1).all()


class Refusal(NamedTuple):
    """An argument, what becomes of it (a value, or a function of the right one), and how that is refused."""

    argument: str
    change: Any
    error: type[Exception]
    said: str

    def applied(self, given: dict[str, Any]) -> dict[str, Any]:
        value = self.change(given[self.argument]) if callable(self.change) else self.change
        return given | {self.argument: value}


def gaps(tensor: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def half(tensor: Tensor) -> Tensor:
    return tensor[..., : tensor.shape[-1] // 2].contiguous()


def ends(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


INDEXER_REFUSALS = (
    Refusal("layout_query", "BSND", NotEmulated, "'BSND'"),
    Refusal("layout_key", "TND", NotEmulated, "'TND'"),
    Refusal("sparse_mode", 1, WrongArguments, "sparse_mode=1"),
    Refusal("pre_tokens", 5, NotEmulated, "pre_tokens"),
    Refusal("return_value", True, NotEmulated, "return_value"),
    Refusal("sparse_count", 2049, WrongArguments, "sparse_count=2049"),
    Refusal("sparse_count", 0, WrongArguments, "sparse_count=0"),
    Refusal("query", Tensor.float, WrongArguments, "query is torch.float32"),
    Refusal("query", half, WrongArguments, "query is"),
    Refusal("query", whole(25, 65, WIDTH), WrongArguments, "65 heads"),
    Refusal("query", gaps, WrongArguments, "query is not contiguous"),
    Refusal("query", lambda rows: rows[:0], WrongArguments, "query is empty"),
    Refusal("key", Tensor.half, WrongArguments, "key is torch.float16"),
    Refusal("key", whole(2, 24, 1, WIDTH), WrongArguments, "pages have 24 keys"),
    Refusal("key", whole(1, 1040, 1, WIDTH), WrongArguments, "pages have 1040 keys"),
    Refusal("weights", Tensor.double, WrongArguments, "weights is torch.float64"),
    Refusal("weights", lambda rows: rows[1:], WrongArguments, "weights is"),
    Refusal("actual_seq_lengths_query", None, WrongArguments, "actual_seq_lengths_query is not given"),
    Refusal("actual_seq_lengths_query", Tensor.long, WrongArguments, "torch.int64"),
    Refusal("actual_seq_lengths_query", ends(5, 4), WrongArguments, "from 5 to 4"),
    Refusal("actual_seq_lengths_query", ends(5, 26), WrongArguments, "to 26 of 25"),
    Refusal("actual_seq_lengths_key", ends(5), WrongArguments, "lengths of the keys is"),
    Refusal("actual_seq_lengths_key", ends(-1, 3), WrongArguments, "-1 keys"),
    Refusal("block_table", None, WrongArguments, "block_table is not given"),
    Refusal("block_table", lambda table: table[:1], WrongArguments, "block_table is"),
    Refusal("block_table", lambda table: table[:, :1].contiguous(), WrongArguments, "need 2 pages"),
    Refusal("block_table", lambda table: table + PAGES, WrongArguments, f"of {PAGES}"),
    Refusal("block_table", lambda table: -1 - table, WrongArguments, f"of {PAGES}"),
)


@pytest.mark.parametrize("refusal", INDEXER_REFUSALS, ids=lambda refusal: f"{refusal.argument}: {refusal.said}")
def test_the_indexer_refuses(refusal):
    with pytest.raises(refusal.error, match=refusal.said):
        torch.ops.npu.npu_lightning_indexer(**refusal.applied(Batch("prefill").indexer()))


ATTENTION_REFUSALS = (
    Refusal("layout_query", "BSND", NotEmulated, "'BSND'"),
    Refusal("sparse_mode", 4, WrongArguments, "sparse_mode=4"),
    Refusal("sparse_block_size", 16, NotEmulated, "sparse_block_size=16"),
    Refusal("attention_mode", 0, WrongArguments, "attention_mode=0"),
    Refusal("return_softmax_lse", True, WrongArguments, "return_softmax_lse"),
    Refusal("sinks", torch.zeros(HEADS), NotEmulated, "sinks"),
    Refusal("query", Tensor.float, WrongArguments, "query is torch.float32"),
    Refusal("query", half, WrongArguments, "query is"),
    Refusal("query", numbers(25, 3, LATENT), WrongArguments, "3 heads"),
    Refusal("query", gaps, WrongArguments, "query is not contiguous"),
    Refusal("key", numbers(2, 8, 1, LATENT), WrongArguments, "pages have 8 keys"),
    Refusal("value", None, WrongArguments, "value is not given"),
    Refusal("query_rope", None, WrongArguments, "query_rope is not given"),
    Refusal("key_rope", lambda cache: cache[:1], WrongArguments, "key_rope is"),
    Refusal("sparse_indices", Tensor.long, WrongArguments, "torch.int64"),
    Refusal("sparse_indices", lambda places: places[1:], WrongArguments, "sparse_indices is"),
    Refusal("sparse_indices", lambda places: places.flip(-1), WrongArguments, "behind a -1"),
    Refusal("sparse_indices", lambda places: places.fill_(20), WrongArguments, "key 20 of 5"),
    Refusal("actual_seq_lengths_kv", None, WrongArguments, "lengths of the keys is not given"),
)


@pytest.mark.parametrize("refusal", ATTENTION_REFUSALS, ids=lambda refusal: f"{refusal.argument}: {refusal.said}")
def test_sparse_attention_refuses(refusal):
    batch = Batch("prefill")
    given = batch.attention(torch.ops.npu.npu_lightning_indexer(**batch.indexer())[0])
    with pytest.raises(refusal.error, match=refusal.said):
        torch.ops.npu.npu_sparse_flash_attention(**refusal.applied(given))
