"""`ascend-moe bench products`: both kinds of product are of the same weights, and each is measured."""

import msgspec
import pytest
import torch

from sglang_ascend_moe.launch.bench.bench_command import main
from sglang_ascend_moe.launch.bench.expert_products import (
    Experts,
    ProductsRecord,
    Weights,
    int8_expert,
    int8_product,
    plain_expert,
)

HIDDEN, INTERMEDIATE, ROWS = 64, 48, 5


def drawn() -> tuple[torch.Tensor, Weights, Weights]:
    generator = torch.Generator().manual_seed(0)
    first = Weights.drawn(2, 2 * INTERMEDIATE, HIDDEN, generator)
    second = Weights.drawn(2, HIDDEN, INTERMEDIATE, generator)
    return torch.randn(ROWS, HIDDEN, generator=generator).to(torch.bfloat16), first, second


@pytest.mark.parametrize("expert", [0, 1])
def test_an_int8_product_is_of_quantised_rows_and_weights(expert):
    rows, first, _ = drawn()
    steps = rows.float().abs().amax(1, keepdim=True) / 127
    quantised = (rows.float() / steps).round().double() * steps.double()
    exact = quantised @ (first.numbers[expert].double() * first.scales[expert, :, None].double()).T
    found = int8_product(rows, first, expert)
    assert found.dtype == torch.bfloat16
    # One rounding to bfloat16, and a few in fp32.
    assert ((found.double() - exact).abs() <= exact.abs() * (2**-8 + 2**-20)).all()


def test_both_kinds_are_of_the_same_expert():
    rows, first, second = drawn()
    plain, int8 = (multiply(rows, first, second, 1).float() for multiply in (plain_expert, int8_expert))
    assert (plain - int8).norm() / plain.norm() < 0.02
    other = plain_expert(rows, first, second, 0).float()
    assert (other - int8).norm() / other.norm() > 0.5


def test_a_run_records_every_number_of_rows(tmp_path, capsys):
    file = tmp_path / "products.json"
    sizes = ["--experts", "2", "--hidden", "64", "--intermediate", "48", "--rounds", "2"]
    assert main(["products", *sizes, "--rows", "1", "3", "--json", str(file)]) == 0
    records = msgspec.json.decode(file.read_bytes(), type=list[ProductsRecord])
    assert [(one.rows, one.rounds) for one in records] == [(1, 2), (3, 2)]
    assert {one.bfloat16_bytes for one in records} == {2 * 3 * 64 * 48 * 2} == {Experts(2, 64, 48).bytes_read(16)}
    assert {one.int8_bytes for one in records} == {2 * (3 * 64 * 48 + 4 * (2 * 48 + 64))}
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "0"], "--rows 0: at least 1"),
        (["--threads", "-1"], "--threads -1: at least 1"),
        (["--json", "no/such/run.json"], "--json no/such/run.json:"),
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_are_named(capsys, flags, said):
    assert main(["products", *flags]) == 2
    assert f"ascend-moe bench products: {said}" in capsys.readouterr().err
