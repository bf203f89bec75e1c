"""The product of experts whose result goes to where the caller says, on an emulated NPU. No NPU has run this."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from sglang_ascend_moe.native import device_session
from tests.exchange.pool import Rank
from tests.npu.cann.library_names import CANN
from tests.npu.cann.test_exchange_on_npu import SEEDS, device_of
from tests.npu.operators.experts import product_into
from tests.serving.npu.layers import npu_layer

pytestmark = pytest.mark.nightly

EXPERTS, FROM, TO = 8, 48, 64
"""Of the second product of `npu_layer`."""
CAPACITY, UNTOUCHED = 40, 7.0
COUNTS = (3, 0, 5, 0, 7, 1, 4, 0)
WEIGHTS = [(None, "bfloat16"), ("W8A8_DYNAMIC", "bfloat16"), ("W4A8_DYNAMIC", "bfloat16"), ("W4A8_DYNAMIC", "float16")]
"""And what their results are."""


def arguments_of(weights: str | None, dtype: str) -> dict[str, Any]:
    """Of one product, on the CPU."""
    moe = npu_layer(weights=weights)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(CAPACITY, FROM, generator=generator)
    weight, scale = moe.w2_weight.data, getattr(moe, "w2_weight_scale", None)
    return {
        "rows": rows.to(torch.bfloat16) if weights is None else (rows * 40).clamp(-127, 127).to(torch.int8),
        "weight": weight.transpose(1, 2) if weights is None else weight,
        "bias": getattr(moe, "w2_scale_bias", None),
        "scale": scale,
        "row_scale": None if weights is None else torch.rand(CAPACITY, generator=generator),
        "counts": torch.tensor(COUNTS),
        "out": torch.full((CAPACITY, TO), UNTOUCHED, dtype=getattr(torch, dtype)),
    }


def there(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same on the device, where a view is one of what it views."""

    def moved(value: torch.Tensor | None) -> torch.Tensor | None:
        if value is None or value.is_contiguous():
            return None if value is None else value.to(device)
        return value.transpose(1, 2).to(device).transpose(1, 2)

    return {name: moved(value) for name, value in given.items()}


def multiply(rank: Rank, libraries: str, weights: str | None, dtype: str, laid_out: bool) -> None:
    library = ctypes.CDLL(f"{libraries}/{CANN}")
    library.emulated_cann_described.restype = ctypes.c_int64
    product = device_session.torch_streams().grouped_product
    expected = arguments_of(weights, dtype)
    given = there(expected, device_of(rank))
    product_into(**expected)
    library.emulated_cann_lay_weights_out(ctypes.c_int64(laid_out))
    try:
        product(**given)
        graph, replayed = torch.npu.NPUGraph(), torch.full_like(given["out"], UNTOUCHED)
        with torch.npu.graph(graph):
            product(**given | {"out": replayed})
        for _ in range(2):
            graph.replay()
        twice = torch.cat([given["rows"]] * 2, dim=1)
        with pytest.raises(RuntimeError, match=r"GroupedMatmul\w+ returned 161002: .* would be copied first"):
            product(**given | {"rows": twice[:, :FROM]})
    finally:
        library.emulated_cann_lay_weights_out(ctypes.c_int64(0))
    total = sum(COUNTS)
    for found in (given["out"], replayed):
        assert torch.equal(found.cpu(), expected["out"])
        assert (found[total:] == UNTOUCHED).all()
    assert expected["out"][:total].abs().sum() > 0
    del graph
    assert library.emulated_cann_described() == 0


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("laid_out", [False, True], ids=["in-order", "laid-out"])
@pytest.mark.parametrize(("weights", "dtype"), WEIGHTS)
def test_the_result_is_written_where_the_caller_says(npu_ranks, libraries, weights, dtype, laid_out, seed):
    npu_ranks.run(1, multiply, str(libraries), weights, dtype, laid_out, seed=seed)
