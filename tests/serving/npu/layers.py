"""An MoE layer of SGLang as it is on an NPU, with SGLang's own Ascend runner over stand-ins for its operators."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.native import device_session
from sglang_ascend_moe.serving.npu import experts
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import host_experts, layer
from tests.npu.operators.experts import product_into, swiglu
from tests.npu.operators.modules import install_operators
from tests.serving.quantised_models import expert_tensors

EXPERTS, HIDDEN, EXPERT_HIDDEN, TOPK, TOKENS = 8, 64, 48, 3, 40
SHAPES = {"w13_weight": (EXPERTS, 2 * EXPERT_HIDDEN, HIDDEN), "w2_weight": (EXPERTS, HIDDEN, EXPERT_HIDDEN)}


def host_layer(ranks: int = 1, rank: int = 0, *, dtype: torch.dtype = torch.bfloat16) -> Any:
    """What our layer reads of SGLang's FusedMoE, with the experts of `rank`."""
    local = EXPERTS // ranks
    made = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5
        own = values[rank * local : (rank + 1) * local].to(dtype)
        made[name] = torch.nn.Parameter(own, requires_grad=False)
    return SimpleNamespace(
        layer_id=0, is_draft=False, num_experts=EXPERTS, hidden_size=HIDDEN, top_k=TOPK,
        moe_runner_config=SimpleNamespace(activation="silu", params_dtype=dtype), **made,
    )  # fmt: skip


def npu_layer(
    ranks: int = 1,
    rank: int = 0,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weights: str | None = None,
    biases: bool = False,
    **settings: Any,
) -> Any:
    """The same with weights as SGLang has them on an NPU once they are loaded, and its runner.

    weights: what modelslim calls their format, None for those of `dtype`. settings: of `MoeRunnerConfig`.
    """
    from sglang.srt.layers.moe.fused_moe_triton import layer as _  # noqa: F401 - the next cannot be imported first
    from sglang.srt.hardware_backend.npu.quantization import moe_methods  # isort: skip
    from sglang.srt.layers.moe.moe_runner.ascend import AscendRunnerCore
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig

    install_operators()
    # A cast to the layout of a device's matrix units.
    moe_methods.npu_format_cast = lambda tensor: tensor
    kernel = {
        None: moe_methods.NPUUnquantMoEMethod,
        "W8A8_DYNAMIC": moe_methods.NPUW8A8Int8MoEMethod,
        "W4A8_DYNAMIC": lambda: moe_methods.NPUW4A8Int8MoEMethod(is_per_channel_weight=True),
    }[weights]
    moe = host_layer(ranks, rank, dtype=dtype)
    moe.w13_kernel, moe.w2_kernel = kernel(), kernel()
    for prefix in ("w13", "w2"):
        if weights is not None:
            plain = getattr(moe, f"{prefix}_weight").data
            for ending, tensor in expert_tensors(plain, weights, down=prefix == "w2").items():
                setattr(moe, f"{prefix}_{ending}", torch.nn.Parameter(tensor, requires_grad=False))
    with patch.object(torch.Tensor, "npu", lambda tensor: tensor, create=True):
        for prefix in ("w13", "w2"):
            getattr(moe, f"{prefix}_kernel").process_weights_after_loading(moe, prefix)
    for seed, (name, shape) in enumerate(SHAPES.items(), start=3):
        if biases:
            values = torch.randn(shape[:2], generator=torch.Generator().manual_seed(seed))
            setattr(moe, f"{name}_bias", torch.nn.Parameter(values, requires_grad=False))
    config = MoeRunnerConfig(
        num_experts=EXPERTS, num_local_experts=EXPERTS // ranks, hidden_size=HIDDEN, top_k=TOPK, params_dtype=dtype,
        **{"activation": "silu", **settings},
    )  # fmt: skip
    config.layer = moe
    moe.moe_runner_config = config
    moe.runner = SimpleNamespace(runner_core=AscendRunnerCore(config))
    return moe


def tokens_of(rank: int, count: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, Any]:
    """A batch of a rank, and where its router sends it."""
    generator = torch.Generator().manual_seed(10 + rank)
    x = torch.randn(count, HIDDEN, generator=generator).to(dtype)
    chosen, ids = torch.rand(count, EXPERTS, generator=generator).topk(TOPK)
    return x, SimpleNamespace(topk_ids=ids, topk_weights=chosen / chosen.sum(-1, keepdim=True))


def serve(patch: Any, moe: Any, exchange: Exchange, options: Options, *, on_npu: bool) -> None:
    """Our layer works with `exchange`, as in a worker that has opened it for `moe`.

    The activation of the host is an NPU's, which rounds once.
    """
    if on_npu:
        experts.prepare(moe, options)
        if moe.w2_weight.is_cpu:
            patch.setattr(device_session, "torch_streams", lambda: SimpleNamespace(grouped_product=product_into))
    patch.setattr(host_experts, "activation_of", lambda _layer: lambda rows: swiglu(rows, -1))
    exchanges = {layer.shape_of(moe): exchange}
    serving = layer.Serving(options, exchanges, rank=0, ranks=1, metrics=False, decode_tokens=0, on_npu=on_npu)
    patch.setattr(layer, "_serving", serving)


def never(*_: object) -> torch.Tensor:
    raise AssertionError("SGLang's own layer was called")
