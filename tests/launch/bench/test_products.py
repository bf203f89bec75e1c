"""`ascend-moe bench products`: both kinds of experts have the same weights, and each is measured as it is served."""

import msgspec
import pytest
import torch

from sglang_ascend_moe.launch.bench.bench_command import main
from sglang_ascend_moe.launch.bench.expert_products import Experts, Layers, ProductsRecord, computed, routed_rows

EXPERTS = Experts(number=4, hidden=64, intermediate=48, topk=3, ranks=2)


def test_both_kinds_are_of_the_same_experts():
    generator = torch.Generator().manual_seed(0)
    layers = Layers.drawn(EXPERTS, generator)
    batch = routed_rows(EXPERTS, 20, generator)
    plain = computed(layers.plain, batch).float().clone()
    int8 = computed(layers.int8, batch).float().clone()
    # Other rounding, and rows of 8 bits; then those of other experts.
    assert (plain - int8).norm() / plain.norm() < 0.02
    other = computed(layers.int8, batch._replace(counts=batch.counts.flip(0))).float()
    assert (other - plain).norm() / plain.norm() > 0.5


def test_tokens_go_to_distinct_experts_of_all_ranks():
    batch = routed_rows(EXPERTS, 400, torch.Generator().manual_seed(0))
    assert len(batch.rows) == batch.counts.sum()
    assert batch.counts.max() <= 400
    # Half of 1,200 rows, give or take five standard deviations.
    assert 600 - 5 * 12.5 < len(batch.rows) < 600 + 5 * 12.5
    everything = EXPERTS._replace(topk=8)
    assert routed_rows(everything, 7, torch.Generator().manual_seed(0)).counts.tolist() == [7] * 4


def test_a_run_records_every_number_of_tokens(tmp_path, capsys):
    file = tmp_path / "products.json"
    sizes = ["--experts", "2", "--ranks", "1", "--topk", "2", "--hidden", "64", "--intermediate", "48", "--rounds", "2"]
    assert main(["products", *sizes, "--tokens", "1", "3", "--json", str(file)]) == 0
    records = msgspec.json.decode(file.read_bytes(), type=list[ProductsRecord])
    assert [(one.tokens, one.rows, one.used, one.rounds) for one in records] == [(1, 2, 2, 2), (3, 6, 2, 2)]
    assert {one.bfloat16_bytes for one in records} == {2 * 3 * 64 * 48 * 2}
    assert {one.int8_bytes for one in records} == {2 * (3 * 64 * 48 + 4 * (2 * 48 + 64))}
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokens", "0"], "--tokens 0: at least 1"),
        (["--threads", "-1"], "--threads -1: at least 1"),
        (["--experts", "2", "--topk", "5"], "--topk 5: at most --experts by --ranks, 4"),
        (["--json", "no/such/run.json"], "--json no/such/run.json:"),
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_are_named(capsys, flags, said):
    assert main(["products", *flags]) == 2
    assert f"ascend-moe bench products: {said}" in capsys.readouterr().err
