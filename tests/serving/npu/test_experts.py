"""Experts by SGLang's Ascend runner, over stand-ins for its operators, on one rank of the host. No NPU has run this."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native import device_session
from sglang_ascend_moe.serving.npu import experts
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import layer
from tests.npu.operators.experts import product_into
from tests.serving.npu.dequantised import layer_output
from tests.serving.npu.layers import EXPERTS, HIDDEN, TOKENS, host_layer, never, npu_layer, serve, tokens_of
from tests.serving.quantised_models import BITS


@pytest.fixture
def output(group, monkeypatch):
    """What our layer gives for a batch, with the experts of the host or of an NPU; `places` says where each is."""

    def compute(
        moe,
        batch: int,
        schedule: str,
        *,
        on_npu: bool,
        quant: str = "none",
        rounds: int = 1,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        shape = layer.shape_of(moe)
        settings = {"distinct_topk": True, "quant": None if quant == "none" else quant, **shape._asdict()}
        window = Exchange.memory(ranks=1, max_tokens=-(-TOKENS // rounds), **settings).total
        with Exchange.create(group, max_tokens=TOKENS, window_bytes=window, **settings) as exchange:
            serve(monkeypatch, moe, exchange, Options(schedule=schedule, quant=quant), on_npu=on_npu)
            x, routed = tokens_of(0, batch, shape.dtype)
            if places is not None:
                routed.topk_ids = places[routed.topk_ids]
            return layer.forward(never, moe, x, routed)

    return compute


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("schedule", "rounds"), [("decode", 1), ("prefill", 1), ("prefill", 4)])
@pytest.mark.parametrize("batch", [0, 1, TOKENS])
def test_the_runner_on_the_window_gives_the_bits_of_the_host(output, batch, schedule, rounds, dtype):
    found = output(npu_layer(dtype=dtype), batch, schedule, on_npu=True, rounds=rounds)
    assert torch.equal(found, output(host_layer(dtype=dtype), batch, schedule, on_npu=False, rounds=rounds))
    assert batch == 0 or found.abs().sum() > 0


@pytest.mark.parametrize("weights", BITS)
def test_rows_are_quantised_by_dispatch_as_the_runner_does_it(output, weights):
    """The int8 rows of a dispatch and the runner's own, over a stand-in for its operator, give the same bits."""
    moe = npu_layer(weights=weights)
    found = output(moe, TOKENS, "decode", on_npu=True, quant="int8")
    assert torch.equal(found, output(moe, TOKENS, "decode", on_npu=True))
    assert torch.equal(found, output(moe, TOKENS, "prefill", on_npu=True, quant="int8", rounds=3))


@pytest.mark.parametrize("weights", BITS)
def test_a_runner_that_the_scheme_of_the_weights_keeps_is_used(output, weights):
    """As with checkpoints of compressed-tensors."""
    moe = npu_layer(weights=weights)
    expected = output(moe, TOKENS, "decode", on_npu=True)
    moe.runner, moe.scheme = None, SimpleNamespace(runner=moe.runner)
    assert torch.equal(output(moe, TOKENS, "decode", on_npu=True), expected)


def beyond(found: torch.Tensor, weights: str) -> torch.Tensor:
    """Which numbers are further from those of the dequantised weights than rounding explains."""
    expected = layer_output(*tokens_of(0, len(found)), weights)
    return ~((found.double() - expected.values).abs() <= expected.error)


@pytest.mark.parametrize("quant", ["int8", "none"])
@pytest.mark.parametrize("weights", BITS)
def test_sums_are_those_of_the_dequantised_weights(output, weights, quant):
    found = output(npu_layer(weights=weights), TOKENS, "decode", on_npu=True, quant=quant)
    assert not beyond(found, weights).any()
    expected = layer_output(*tokens_of(0, TOKENS), weights)
    assert (found - expected.values).norm() / expected.values.norm() < 0.02


def _roll(name: str, by: int, dim: int) -> Callable[[Any], None]:
    def change(moe: Any) -> None:
        parameter = getattr(moe, name)
        parameter.data = parameter.data.roll(by, dims=dim)

    return change


def _exchange_gate_and_up(moe: Any) -> None:
    for name in ("w13_weight", "w13_weight_scale", "w13_scale_bias"):
        if (parameter := getattr(moe, name, None)) is not None:
            parameter.data = parameter.data.roll(parameter.shape[-1] // 2, dims=-1)


def _swap_nibbles(moe: Any) -> None:
    packed = moe.w2_weight.data.view(torch.uint8)
    moe.w2_weight.data = ((packed << 4) | (packed >> 4)).view(torch.int32)


CHANGES = {
    "gate and up exchanged": (_exchange_gate_and_up, tuple(BITS)),
    "weights of other experts": (_roll("w13_weight", 1, 0), tuple(BITS)),
    "scales of other experts": (_roll("w13_weight_scale", 1, 0), tuple(BITS)),
    "scales of other channels": (_roll("w2_weight_scale", 1, -1), tuple(BITS)),
    "nibbles swapped": (_swap_nibbles, ("W4A8_DYNAMIC",)),
    "sums of other channels": (_roll("w2_scale_bias", 1, -1), ("W4A8_DYNAMIC",)),
    "sums of other experts": (_roll("w13_scale_bias", 1, 0), ("W4A8_DYNAMIC",)),
}


@pytest.mark.parametrize(
    ("weights", "change"),
    [(weights, change) for name, (change, kinds) in CHANGES.items() for weights in kinds],
    ids=[f"{weights} {name}" for name, (_, kinds) in CHANGES.items() for weights in kinds],
)
def test_a_wrong_layout_is_seen(output, weights, change):
    moe = npu_layer(weights=weights)
    change(moe)
    found = output(moe, TOKENS, "decode", on_npu=True, quant="int8")
    assert beyond(found, weights).float().mean() > 0.1


def test_counts_of_other_experts_are_seen(output, monkeypatch):
    compute = experts.compute
    flipped = lambda moe, rows: compute(moe, rows._replace(counts=rows.counts.flip(0)))  # noqa: E731
    monkeypatch.setattr(experts, "compute", flipped)
    found = output(npu_layer(weights="W8A8_DYNAMIC"), TOKENS, "decode", on_npu=True, quant="int8")
    assert beyond(found, "W8A8_DYNAMIC").float().mean() > 0.1


@pytest.mark.parametrize("weights", BITS)
def test_experts_that_sglang_moves_take_all_with_them_that_their_numbers_need(output, weights):
    from sglang.srt.eplb.expert_location_updater import create_temp_buffers, update_expert_weights_single_layer
    from sglang.srt.layers.moe.utils import filter_moe_weight_param_global_expert

    moe = npu_layer(weights=weights)
    expected = output(moe, TOKENS, "decode", on_npu=True)
    parameters = {name: value for name, value in vars(moe).items() if isinstance(value, torch.nn.Parameter)}
    moved = [
        value.data for name, value in parameters.items() if filter_moe_weight_param_global_expert(name, value, EXPERTS)
    ]
    assert len(moved) == len(parameters)
    places = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(1)).tolist()
    update_expert_weights_single_layer(
        moved, create_temp_buffers(moved), list(range(EXPERTS)), places, EXPERTS, num_gpu_per_node=1, rank=0
    )
    in_place = output(moe, TOKENS, "decode", on_npu=True)
    elsewhere = output(moe, TOKENS, "decode", on_npu=True, places=torch.tensor(places).argsort())
    assert torch.equal(elsewhere, expected)
    assert not torch.equal(in_place, expected)


class Watch(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("weights", "dtype"), [*((weights, torch.bfloat16) for weights in (None, *BITS)), ("W4A8_DYNAMIC", torch.float16)]
)
@pytest.mark.parametrize("known", [True, False], ids=["eager", "captured"])
def test_the_host_reads_no_value_and_the_last_product_writes_into_the_window(weights, dtype, known, monkeypatch):
    """In a capture the number of rows is not known, and everything has the size of what can come."""
    moe = npu_layer(weights=weights, dtype=dtype)
    experts.prepare(moe, Options(quant="int8" if weights else "none"))
    watch = Watch()
    capacity, total = 32, 20
    counts = torch.tensor([3, 0, 5, 0, 7, 1, 4, 0])
    rows = torch.randint(-9, 9, (capacity, HIDDEN)).to(torch.int8 if weights else dtype)
    scales = torch.rand(capacity) if weights else None
    out = torch.full((capacity, HIDDEN), 7.0, dtype=dtype)
    places = []

    def multiply(*given: torch.Tensor) -> None:
        places.append(given[-1].data_ptr())
        with _disable_current_modes():
            product_into(*given)

    monkeypatch.setattr(device_session, "torch_streams", lambda: SimpleNamespace(grouped_product=multiply))
    window = ExpertRows(rows, scales, counts, out, SimpleNamespace(at_most=total if known else capacity))
    with watch:
        experts.compute(moe, window)
    assert places == [out.data_ptr()]
    assert moe.w2_kernel.matmul.place is None
    # Each of these is one kernel, which reads the counts itself.
    assert watch.names.count("npu::npu_grouped_matmul") == watch.names.count("sgl_kernel_npu::swiglu_quant") == 1
    assert {"aten::copy_", "aten::clone", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}.isdisjoint(
        watch.names
    )
    assert not out[:total].isnan().any()
    assert not (out[:total] == 7).all()
    assert (out[total:] == 7).all()


@pytest.mark.parametrize("weights", BITS)
def test_int8_rows_of_float16_layers_give_float16(output, weights):
    """By W8A8 weights in bfloat16, and copied."""
    moe = npu_layer(weights=weights, dtype=torch.float16)
    found = output(moe, TOKENS, "decode", on_npu=True, quant="int8")
    assert found.dtype == torch.float16
    assert not beyond(found, weights).any()


def test_layers_that_the_runner_cannot_compute_are_refused():
    moe = npu_layer()
    with pytest.raises(Unsupported, match=r"--ascend-moe-quant int8: .* not quantised"):
        experts.prepare(moe, Options(quant="int8"))
    four_bits = npu_layer(weights="W4A8_DYNAMIC")
    four_bits.w2_kernel.is_per_channel_weight = False
    with pytest.raises(Unsupported, match="MoE layer 0 has W4A8 weights with clipped activations or a scale per group"):
        experts.prepare(four_bits, Options())
    moe.w2_kernel = SimpleNamespace()
    with pytest.raises(Unsupported, match="computed by NPUUnquantMoEMethod and SimpleNamespace"):
        experts.prepare(moe, Options())


@pytest.mark.parametrize("left", [0.0, 1e6, torch.nan], ids=str)
@pytest.mark.parametrize("prefix", ["w13", "w2"])
def test_sums_that_were_never_loaded_are_refused(prefix, left):
    moe = npu_layer(weights="W4A8_DYNAMIC")
    experts.prepare(moe, Options())
    getattr(moe, f"{prefix}_scale_bias").data.fill_(left)
    with pytest.raises(Unsupported, match="MoE layer 0 has W4A8 weights without the sums"):
        experts.prepare(moe, Options())


@pytest.mark.parametrize("asked", [True, False], ids=["with --ascend-moe", "without"])
def test_w8a8_weights_are_laid_out_for_the_fused_kernel_only_without_us(asked, monkeypatch):
    from sglang.srt import runtime_context

    arguments = SimpleNamespace(_ascend_moe_options=Options()) if asked else SimpleNamespace()
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: arguments)
    laid_out = []
    result = experts.keep_weights(lambda moe: bool(laid_out.append(moe)) or True, "a layer")
    assert (result, laid_out) == ((False, []) if asked else (True, ["a layer"]))
