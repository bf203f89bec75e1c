"""Experts of a host that keep the integers of a quantised checkpoint, with their scales: see `int8_experts`.

All others of its weights are dequantised when they are loaded: see `dequantised_weights`. `build_model` is a hook: see
`host_hooks`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.host.weight_formats import formats_of
from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.worker.layer import moe_layers

# SGLang hands the configuration of a model to whoever reads its weights, at start-up and later.
_ATTRIBUTE = "_ascend_moe_keeps_experts"


def build_model(original: Callable[..., Any], model_config: Any, load_config: Any, quant_config: Any = None) -> Any:
    """Around `_initialize_model`: with `--ascend-moe` the experts get room for integers, if the checkpoint has them.

    SGLang's own layer, without it, multiplies floats only.
    """
    from sglang.srt.runtime_context import get_server_args

    model = original(model_config, load_config, quant_config)
    stored = formats_of(Path(model_config.model_path))
    if options_of(get_server_args()) is not None and stored is not None and stored.integer_experts:
        for layer in moe_layers(model):
            keep_integers(layer)
        setattr(model_config, _ATTRIBUTE, True)
    return model


def are_kept(model_config: Any) -> bool:
    """Whether the experts of the model that was built for a configuration of SGLang hold integers."""
    return getattr(model_config, _ATTRIBUTE, False)


def keep_integers(layer: Any) -> None:
    """Give an MoE layer of SGLang int8 weights [experts, to, from] and fp32 scales [experts, to, 1] to load into."""
    for prefix in ("w13", "w2"):
        weight = getattr(layer, f"{prefix}_weight")
        load = weight.weight_loader
        numbers = torch.nn.Parameter(torch.empty_like(weight, dtype=torch.int8), requires_grad=False)
        numbers.weight_loader = _of_integers(load)
        scales = torch.nn.Parameter(torch.empty(*weight.shape[:2], 1, dtype=torch.float32), requires_grad=False)
        scales.weight_loader, scales.quant_method = load, "channel"
        layer.register_parameter(f"{prefix}_weight", numbers)
        layer.register_parameter(f"{prefix}_weight_scale", scales)


def _of_integers(load: Callable[..., None]) -> Callable[..., None]:
    def load_integers(parameter: Any, loaded: Tensor, *arguments: Any, **keywords: Any) -> None:
        if loaded.dtype != torch.int8:
            raise InvalidInput(
                f"weights of experts in {loaded.dtype}: this server's are int8, as in the checkpoint that it was"
                " started with; give int8 weights and their scales, or start the server with the other checkpoint"
            )
        load(parameter, loaded, *arguments, **keywords)

    return load_integers
