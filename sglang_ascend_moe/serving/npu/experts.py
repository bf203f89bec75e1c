"""Experts on an NPU: SGLang's own Ascend runner computes on the rows of the window. No NPU has run this.

The runner takes rows, scales and counts as they lie in the window and on the device; the host does not look at them.
Its last product writes its result into the window (`last_product`).
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.serving.npu.activations import activation_of
from sglang_ascend_moe.serving.npu.last_product import ProductIntoWindow
from sglang_ascend_moe.serving.options import FLAGS, Options, options_of

COUNTS = 1
"""`group_list_type`: rows of each expert, not their running sum."""


def keep_weights(original: Callable[[Any], bool], layer: Any) -> bool:
    """Around `NPUW8A8Int8MoEMethod.maybe_process_fuseep_weights`: leaves the weights as the runner takes them.

    The backend that `--ascend-moe` chooses would lay them out for SGLang's own fused kernel. Returns whether it did.
    """
    from sglang.srt.runtime_context import get_server_args

    return original(layer) if options_of(get_server_args()) is None else False


def prepare(layer: Any, options: Options) -> None:
    """Before the first call: refuses what the runner cannot do with rows of the window, and gives it the activation of
    the model (see `activations`) and a last product that writes into the window.

    layer: SGLang's `FusedMoE`. Raises `Unsupported`.
    """
    from sglang.srt.hardware_backend.npu.quantization.moe_methods import (
        NPUUnquantMoEMethod,
        NPUW4A8Int8MoEMethod,
        NPUW8A8Int8MoEMethod,
    )
    from sglang.srt.layers.moe.moe_runner.ascend import AscendRunnerCore

    core = _runner_core(layer)
    kernels = [getattr(layer, f"{prefix}_kernel", None) for prefix in ("w13", "w2")]
    quantised = all(isinstance(kernel, NPUW8A8Int8MoEMethod | NPUW4A8Int8MoEMethod) for kernel in kernels)
    plain = all(isinstance(kernel, NPUUnquantMoEMethod) for kernel in kernels)
    if not isinstance(core, AscendRunnerCore) or not (quantised or plain):
        names = " and ".join(type(kernel).__name__ for kernel in kernels)
        raise Unsupported(
            f"MoE layer {layer.layer_id} is computed by {names}: on an NPU --ascend-moe serves weights in bfloat16,"
            " float16, and W8A8 or W4A8 with a scale per token; use a checkpoint in one of these"
        )
    for prefix, kernel in zip(("w13", "w2"), kernels, strict=True):
        if isinstance(kernel, NPUW4A8Int8MoEMethod):
            _refuse_four_bits(layer, prefix, kernel)
    if options.quant == "int8" and not quantised:
        raise Unsupported(
            f"{FLAGS['quant'].flag} int8: on an NPU rows travel as int8 to W8A8 and W4A8 experts only, and those of MoE"
            f" layer {layer.layer_id} are not quantised; leave it out"
        )
    # A product takes biases in fp32 for rows in bfloat16 alone, and the one of W4A8 weights has sums in that place.
    if hasattr(layer, "w13_weight_bias") and (quantised or row_dtype(layer) != torch.bfloat16):
        raise Unsupported(
            f"MoE layer {layer.layer_id} has biases: on an NPU --ascend-moe serves them with weights in bfloat16; use"
            " --dtype bfloat16 and a checkpoint that is not quantised"
        )
    try:
        core.activation = activation_of(layer, quantised=quantised)
    except ImportError as error:
        raise Unsupported(
            f"--device npu: sgl_kernel_npu cannot be loaded ({error}), which SGLang's experts need; use an Ascend image"
            " of SGLang"
        ) from error
    layer.w2_kernel.matmul = ProductIntoWindow(layer.w2_kernel.matmul)


def _refuse_four_bits(layer: Any, prefix: str, kernel: Any) -> None:
    # SGLang lays scales per group out for other shapes than it loads, and leaves the clipping of activations out.
    if kernel.activation_use_clip or not kernel.is_per_channel_weight:
        raise Unsupported(
            f"MoE layer {layer.layer_id} has W4A8 weights with clipped activations or a scale per group: use a"
            " checkpoint with a scale per channel only"
        )
    # Where a checkpoint has no sums, SGLang leaves what was in memory. Each is 8 * the sum of weights from -8 to 7.
    sums = getattr(layer, f"{prefix}_scale_bias")
    scales = getattr(layer, f"{prefix}_weight_scale").to(torch.int32).view(torch.float32).squeeze(1)
    inputs = getattr(layer, f"{prefix}_weight").shape[1]
    if not bool((sums.abs() <= 8 * 8 * inputs * scales).all()) or not bool(sums.any()):
        raise Unsupported(
            f"MoE layer {layer.layer_id} has W4A8 weights without the sums (scale_bias) that an NPU needs: use a"
            " checkpoint that modelslim 1.0.0 or later wrote"
        )


def compute(layer: Any, rows: ExpertRows) -> None:
    """Run the local experts of `layer` on the rows of the window; writes `rows.out`.

    In the capture of a graph the number of rows is not known: then as many as can come go through the runner, whose
    products and activation end at the counts.
    """
    from sglang.srt.layers.moe.moe_runner.ascend import AscendQuantInfo, AscendRunnerInput

    count = rows.ticket.at_most
    if not count:
        return
    scales = None if rows.scales is None else rows.scales[:count]
    weights = {name: getattr(layer, name, None) for name in AscendQuantInfo.__dataclass_fields__}
    taken = AscendRunnerInput(
        hidden_states=rows.rows[:count], hidden_states_scale=scales, expert_tokens=rows.counts, group_list_type=COUNTS
    )
    product = layer.w2_kernel.matmul
    product.place = rows.out[:count]
    try:
        _runner_core(layer).run(taken, AscendQuantInfo(**weights), {})
    finally:
        # A window stays mapped as long as a view of it is there.
        product.place = None


def _runner_core(layer: Any) -> Any:
    """Of the runner that the layer has, or that the scheme of its weights (compressed-tensors) keeps; None without."""
    runner = layer.runner or getattr(getattr(layer, "scheme", None), "runner", None)
    return getattr(runner, "runner_core", None)


def row_dtype(layer: Any) -> torch.dtype:
    """The dtype of the layer's input: that of its weights, unless these are quantised."""
    weights: torch.dtype = layer.w13_weight.dtype
    return weights if weights.is_floating_point else layer.moe_runner_config.params_dtype
