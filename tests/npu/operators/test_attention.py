"""Attention of the emulated NPU against torch's own, over keys gathered page by page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.npu.operators.modules import install_operators
from tests.npu.operators.refusals import NotEmulated, WrongArguments

PAGE = 4
MASK = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
# New tokens and all tokens of each sequence: page boundaries, one token, a prefix, no sequence at all.
BATCHES = {
    "fresh": [(5, 5), (1, 1), (4, 4)],
    "after a prefix": [(3, 7), (1, 9), (2, 8)],
    "one": [(1, 13)],
    "none": [],
}
HEADS = {"one head each": (4, 4), "four to one": (8, 2), "all to one": (4, 1)}


@pytest.fixture(scope="module", autouse=True)
def operators():
    install_operators()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Pages:
    """Keys or values of some sequences, in pages that are in no order, and NaN in all that belongs to nobody."""

    def __init__(self, sequences: list[Tensor], heads: int, width: int) -> None:
        needed = [-(-len(sequence) // PAGE) for sequence in sequences]
        order = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(5)).tolist()
        self.cache = torch.full((len(order), PAGE, heads, width), torch.nan, dtype=torch.bfloat16)
        self.table = torch.zeros(len(sequences), max(needed, default=0), dtype=torch.int32)
        for row, (sequence, count) in enumerate(zip(sequences, needed, strict=True)):
            own, order = order[:count], order[count:]
            self.table[row, :count] = torch.tensor(own)
            for position, token in enumerate(sequence):
                self.cache[own[position // PAGE], position % PAGE] = token


def reference(query: Tensor, keys: Tensor, values: Tensor, scale: float, *, causal: bool) -> Tensor:
    """Of one sequence, tokens first, by torch in fp32."""
    rows, columns = len(query), len(keys)
    seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows) if causal else None
    q, k, v = (tensor.float().transpose(0, 1)[None] for tensor in (query, keys, values))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for where a sum lies on the border between two numbers of 16 bits."""
    return found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=1e-5)


class Case:
    """A batch of sequences with queries for their last tokens."""

    def __init__(self, batch: str, heads: int, key_heads: int, width: int = 16, value_width: int | None = None) -> None:
        self.new, self.all = [list(column) for column in zip(*BATCHES[batch], strict=True)] or ([], [])
        self.query = [numbers(rows, heads, width, seed=row) for row, rows in enumerate(self.new)]
        self.keys = [numbers(rows, key_heads, width, seed=10 + row) for row, rows in enumerate(self.all)]
        value_width = value_width or width
        self.values = [numbers(rows, key_heads, value_width, seed=20 + row) for row, rows in enumerate(self.all)]
        self.flat = torch.cat(self.query) if self.query else numbers(0, heads, width)
        self.paged_keys, self.paged_values = (
            Pages(self.keys, key_heads, width),
            Pages(self.values, key_heads, value_width),
        )

    def expected(self, *, causal: bool, scale: float = 0.25) -> Tensor:
        own = [
            reference(*tensors, scale, causal=causal)
            for tensors in zip(self.query, self.keys, self.values, strict=True)
        ]
        return torch.cat(own) if own else self.flat.new_empty((0, self.flat.shape[1], self.values_width))

    @property
    def values_width(self) -> int:
        return self.paged_values.cache.shape[3]


@pytest.mark.parametrize(("heads", "key_heads"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("operator", ["npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"])
def test_prefill_over_pages(operator, batch, heads, key_heads):
    case = Case(batch, heads, key_heads)
    names = ("num_heads", "actual_seq_lengths", "actual_seq_lengths_kv", "scale")
    if operator.endswith("v2"):
        names = ("num_query_heads", "actual_seq_qlen", "actual_seq_kvlen", "softmax_scale")
    # As SGLang gives them: sums by numpy, lengths as a tensor of the host.
    given = dict(
        zip(
            names, (heads, np.cumsum(case.new, dtype=int), torch.tensor(case.all, dtype=torch.int32), 0.25), strict=True
        )
    )
    out, log_sum = getattr(torch.ops.npu, operator)(
        case.flat, case.paged_keys.cache.flatten(2), case.paged_values.cache.flatten(2),
        block_table=case.paged_keys.table, block_size=PAGE, atten_mask=MASK, input_layout="TND",
        num_key_value_heads=key_heads, sparse_mode=3, **given,
    )  # fmt: skip
    assert close(out, case.expected(causal=True))
    assert log_sum.shape == (0,)


DECODE = {
    "BSH": (lambda rows: rows.flatten(1)[:, None], lambda out, heads: out[:, 0].unflatten(1, (heads, -1))),
    "BSND": (lambda rows: rows[:, None], lambda out, _: out[:, 0]),
    "BNSD": (lambda rows: rows[:, :, None], lambda out, _: out[:, :, 0]),
    "BNSD_BSND": (lambda rows: rows[:, :, None], lambda out, _: out[:, 0]),
    "BSH_BNSD": (lambda rows: rows.flatten(1)[:, None], lambda out, _: out[:, :, 0]),
    "BSND_BNSD": (lambda rows: rows[:, None], lambda out, _: out[:, :, 0]),
}
LENGTHS = [7, 0, 4, 13]


def decode_case(heads: int, key_heads: int) -> tuple[Tensor, Pages, Pages, Tensor]:
    """Query rows, keys, values, and what must come out: nothing of a padded row."""
    query = numbers(len(LENGTHS), heads, 16)
    keys = [numbers(length, key_heads, 16, seed=30 + length) for length in LENGTHS]
    values = [numbers(length, key_heads, 16, seed=50 + length) for length in LENGTHS]
    expected = torch.zeros(query.shape)
    for row, length in enumerate(LENGTHS):
        if length:
            expected[row] = reference(query[row : row + 1], keys[row], values[row], 0.25, causal=False)[0]
    return query, Pages(keys, key_heads, 16), Pages(values, key_heads, 16), expected


@pytest.mark.parametrize(("heads", "key_heads"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("layout", DECODE)
@pytest.mark.parametrize("heads_first", [False, True], ids=["a page has tokens", "a page has heads"])
def test_decode_over_pages_with_padded_rows(layout, heads, key_heads, heads_first):
    query, keys, values, expected = decode_case(heads, key_heads)
    into, outof = DECODE[layout]
    caches = [pages.cache.transpose(1, 2) if heads_first else pages.cache.flatten(2) for pages in (keys, values)]
    arguments = (into(query), *(cache.contiguous() for cache in caches))
    given = {
        "block_table": keys.table, "block_size": PAGE, "num_heads": heads, "num_key_value_heads": key_heads,
        "input_layout": layout, "scale": 0.25, "actual_seq_lengths_kv": LENGTHS, "atten_mask": None, "sparse_mode": 0,
    }  # fmt: skip
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(*arguments, **given)
    assert close(outof(out, heads), expected)
    # The form of graphs, into memory of the caller.
    workspace = torch.ops.npu._npu_fused_infer_attention_score_get_max_workspace(*arguments, **given)
    made, unused = torch.full_like(out, torch.nan), torch.full((1,), 7.0, dtype=torch.bfloat16)
    torch.ops.npu.npu_fused_infer_attention_score.out(*arguments, **given, workspace=workspace, out=[made, unused])
    assert torch.equal(made, out)
    assert unused.item() == 7


def test_a_mask_of_each_sequence_hides_keys():
    query, keys, values, _ = decode_case(4, 2)
    hidden = torch.zeros(len(LENGTHS), 1, 16, dtype=torch.bool)
    hidden[:, :, ::2] = True
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(
        query.flatten(1)[:, None], keys.cache.flatten(2), values.cache.flatten(2), block_table=keys.table,
        block_size=PAGE, num_heads=4, num_key_value_heads=2, input_layout="BSH", scale=0.25,
        actual_seq_lengths_kv=LENGTHS, atten_mask=hidden,
    )  # fmt: skip
    for row, length in enumerate(LENGTHS):
        if length:
            own = [pages.cache[pages.table[row].long()].flatten(0, 1)[:length][1::2] for pages in (keys, values)]
            expected = reference(query[row : row + 1], *own, 0.25, causal=False)
            assert close(out[row].view(1, 4, 16), expected)


def test_a_band_sees_so_many_keys_back():
    case = Case("after a prefix", 4, 2)
    out, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
        case.flat, case.paged_keys.cache.flatten(2), case.paged_values.cache.flatten(2),
        block_table=case.paged_keys.table, block_size=PAGE, atten_mask=MASK, input_layout="TND", num_query_heads=4,
        num_key_value_heads=2, sparse_mode=4, pre_tokens=2, next_tokens=0, actual_seq_qlen=np.cumsum(case.new),
        actual_seq_kvlen=case.all, softmax_scale=0.25,
    )  # fmt: skip
    begin = 0
    for query, keys, values in zip(case.query, case.keys, case.values, strict=True):
        for row in range(len(query)):
            end = len(keys) - len(query) + row + 1
            part = slice(max(0, end - 3), end)
            expected = reference(query[row : row + 1], keys[part], values[part], 0.25, causal=False)
            assert close(out[begin + row : begin + row + 1], expected)
        begin += len(query)


LATENT, POSITION = 32, 8


@pytest.mark.parametrize("heads", [4, 8])
def test_latent_decode_over_pages(heads):
    """Keys are latent with their positions apart, and are the values too."""
    query, position = numbers(3, 1, heads, LATENT), numbers(3, 1, heads, POSITION, seed=1)
    lengths = [5, 0, 8]
    latent = [numbers(length, 1, LATENT, seed=60 + length) for length in lengths]
    positions = [numbers(length, 1, POSITION, seed=80 + length) for length in lengths]
    cache, places = Pages(latent, 1, LATENT), Pages(positions, 1, POSITION)
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(
        query, cache.cache.flatten(2), cache.cache.flatten(2), query_rope=position, key_rope=places.cache.flatten(2),
        num_heads=heads, num_key_value_heads=1, input_layout="BSND", atten_mask=None, sparse_mode=0, scale=0.2,
        antiquant_mode=0, antiquant_scale=None, block_table=cache.table, block_size=PAGE,
        actual_seq_lengths_kv=torch.tensor(lengths, dtype=torch.int32),
    )  # fmt: skip
    assert out.shape == query.shape
    assert not out[1].any()
    joined = torch.cat([query, position], dim=-1)
    for row in (0, 2):
        keys = torch.cat([latent[row], positions[row]], dim=-1)
        assert close(out[row], reference(joined[row], keys, latent[row], 0.2, causal=False))


@pytest.mark.parametrize("batch", BATCHES)
def test_latent_prefill_over_parts_of_the_keys(batch):
    """As SGLang does after a prefix: new tokens over themselves, over the prefix, and both put together."""
    width, value_width, scale = 12, 12, 0.3
    case = Case(batch, 4, 4, width + POSITION, value_width)
    prefixes = [total - new for new, total in zip(case.new, case.all, strict=True)]
    ends, prefix_ends = np.cumsum(case.new, dtype=int).tolist(), np.cumsum(prefixes, dtype=int).tolist()

    def joined(tensors: list[Tensor], *, prefix: bool, width: int) -> Tensor:
        own = [t[:p] if prefix else t[p:] for t, p in zip(tensors, prefixes, strict=True)]
        return torch.cat(own) if own else numbers(0, 4, width)

    def over(*, prefix: bool, causal: bool) -> tuple[Tensor, Tensor]:
        keys = joined(case.keys, prefix=prefix, width=width + POSITION)
        return torch.ops.npu.npu_fused_infer_attention_score_v2(
            case.flat[..., :width], keys[..., :width], joined(case.values, prefix=prefix, width=value_width),
            query_rope=case.flat[..., width:], key_rope=keys[..., width:], num_query_heads=4, num_key_value_heads=4,
            input_layout="TND", actual_seq_qlen=ends, actual_seq_kvlen=prefix_ends if prefix else ends,
            atten_mask=MASK if causal else None, sparse_mode=3 if causal else 0, softmax_scale=scale,
            return_softmax_lse=True,
        )  # fmt: skip

    new, new_sums = over(prefix=False, causal=True)
    old, old_sums = over(prefix=True, causal=False)
    assert new_sums.shape == old_sums.shape == (len(case.flat), 4, 1)
    for begin, end, prefix in zip([0, *ends], ends, prefixes, strict=False):
        if not prefix:
            assert (old_sums[begin:end] == torch.inf).all()
            old_sums[begin:end] = -torch.inf
    sums = (new_sums.reshape(-1), old_sums.reshape(-1))
    outs = tuple(out.float().reshape(-1, value_width) for out in (new, old))
    together, _ = torch.ops.npu.npu_attention_update(sums, outs, 0)
    expected = case.expected(causal=True, scale=scale)
    assert torch.allclose(together.view(-1, 4, value_width), expected.float(), rtol=2**-6, atol=2**-8)


@pytest.mark.parametrize("layout", ["BSND", "BNSD", "BSH", "NTD", "NTD_TND", "TND_NTD"])
def test_dense_keys_in_every_layout(layout):
    case = Case("fresh", 4, 2)
    sums = np.cumsum(case.new).tolist()

    def attention(query: Tensor, keys: Tensor, values: Tensor, **more: object) -> Tensor:
        return torch.ops.npu.npu_fused_infer_attention_score(
            query, keys, values, num_heads=4, num_key_value_heads=2, input_layout=layout, atten_mask=MASK,
            sparse_mode=3, scale=0.25, next_tokens=0, **more,
        )[0]  # fmt: skip

    if "T" in layout:
        change = (lambda t: t) if layout.startswith("TND") else (lambda t: t.transpose(0, 1).contiguous())
        back = (lambda t: t) if layout.endswith("TND") else (lambda t: t.transpose(0, 1))
        flat = (case.flat, torch.cat(case.keys), torch.cat(case.values))
        found = attention(*map(change, flat), actual_seq_lengths=sums, actual_seq_lengths_kv=sums)
        assert close(back(found), case.expected(causal=True))
        return
    into = {"BSND": lambda t: t[None], "BNSD": lambda t: t.transpose(0, 1)[None], "BSH": lambda t: t.flatten(1)[None]}
    back = {"BSND": lambda t: t[0], "BNSD": lambda t: t[0].transpose(0, 1), "BSH": lambda t: t[0].unflatten(1, (4, 16))}
    found = [
        back[layout](attention(*map(into[layout], tensors)))
        for tensors in zip(case.query, case.keys, case.values, strict=True)
    ]
    assert close(torch.cat(found), case.expected(causal=True))


def test_rows_of_no_sequence_are_not_a_number():
    case = Case("fresh", 4, 2)
    sums = np.cumsum(case.new).tolist()
    more = torch.cat([case.flat, numbers(3, 4, 16)])
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(
        more, torch.cat(case.keys), torch.cat(case.values), num_heads=4, num_key_value_heads=2, input_layout="TND",
        atten_mask=MASK, sparse_mode=3, scale=0.25, actual_seq_lengths=sums, actual_seq_lengths_kv=sums,
    )  # fmt: skip
    assert out[-3:].isnan().all()
    assert close(out[:-3], case.expected(causal=True))


@pytest.mark.parametrize(("heads", "key_heads"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("batch", BATCHES)
def test_flash_attention_writes_its_rows_only(batch, heads, key_heads):
    case = Case(batch, heads, key_heads)
    padded = torch.cat([case.flat, numbers(2, heads, 16)]).flatten(1)
    out = torch.full((len(padded), heads * 16), 7.0, dtype=torch.bfloat16)
    torch.ops.atb._npu_flash_attention_qlens(
        query=padded, key_cache=case.paged_keys.cache, value_cache=case.paged_values.cache,
        mask=torch.ones(128, 128).triu(1).bfloat16(), block_table=case.paged_keys.table,
        seq_len=torch.tensor(case.new, dtype=torch.int32), context_lens=torch.tensor(case.all, dtype=torch.int32),
        scale_value=0.25, num_heads=heads, num_kv_heads=key_heads, out=out,
    )  # fmt: skip
    assert close(out[:-2].unflatten(1, (heads, 16)), case.expected(causal=True))
    assert (out[-2:] == 7).all()


@pytest.mark.parametrize(("heads", "key_heads"), HEADS.values(), ids=HEADS)
def test_paged_attention_of_the_last_tokens(heads, key_heads):
    query, keys, values, expected = decode_case(heads, key_heads)
    out = torch.full((len(query), heads, 16), 7.0, dtype=torch.bfloat16)
    torch.ops.atb._npu_paged_attention(
        query=query, key_cache=keys.cache, value_cache=values.cache, num_heads=heads, num_kv_heads=key_heads,
        scale_value=0.25, block_table=keys.table, context_lens=torch.tensor(LENGTHS, dtype=torch.int32), out=out,
    )  # fmt: skip
    assert close(out, expected)


def test_paged_attention_over_latent_keys():
    lengths = [6, 3]
    keys = [numbers(length, 1, LATENT + POSITION, seed=90 + length) for length in lengths]
    pages = Pages(keys, 1, LATENT + POSITION)
    query, out = numbers(2, 4, LATENT + POSITION), torch.empty(2, 4, LATENT, dtype=torch.bfloat16)
    torch.ops.atb._npu_paged_attention_mla(
        query=query, key_cache=pages.cache, num_kv_heads=1, num_heads=4, scale_value=0.2, block_table=pages.table,
        context_lens=torch.tensor(lengths, dtype=torch.int32), mla_vheadsize=LATENT, out=out,
    )  # fmt: skip
    for row, own in enumerate(keys):
        assert close(out[row : row + 1], reference(query[row : row + 1], own, own[..., :LATENT], 0.2, causal=False))


REFUSED = {
    "another layout": (
        {"input_layout": "SBH"},
        NotEmulated,
        "no npu_fused_infer_attention_score with input_layout='SBH'",
    ),
    "another mode": ({"sparse_mode": 2}, NotEmulated, "with sparse_mode=2"),
    "quantised keys": ({"key_antiquant_scale": MASK}, NotEmulated, "with key_antiquant_scale"),
    "no mask": ({"sparse_mode": 3}, WrongArguments, r"needs a mask \[2048, 2048\]"),
    "no lengths": ({"input_layout": "TND", "query": numbers(2, 4, 16)}, WrongArguments, "needs the lengths"),
    "too few pages": ({"actual_seq_lengths_kv": [17, 1, 1, 1]}, WrongArguments, "17 keys need 5 pages"),
    "too few lengths": ({"actual_seq_lengths_kv": [1, 1]}, WrongArguments, "4 sequences, 2 lengths"),
    "another page": ({"block_size": 8}, WrongArguments, "block_size=8 and a cache"),
}


@pytest.mark.parametrize(("change", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_there_is_named(change, kind, words):
    query, keys, values, _ = decode_case(4, 2)
    given = {
        "query": query[:, None], "key": keys.cache.flatten(2), "value": values.cache.flatten(2), "num_heads": 4,
        "num_key_value_heads": 2, "input_layout": "BSND", "block_table": keys.table, "block_size": PAGE,
        "actual_seq_lengths_kv": LENGTHS,
    } | change  # fmt: skip
    if "T" in given["input_layout"]:
        del given["actual_seq_lengths_kv"]
    with pytest.raises(kind, match=words):
        torch.ops.npu.npu_fused_infer_attention_score(**given)
