"""The engines that the serving tests start."""

from pathlib import Path
from typing import Any

from tests.serving.engines import EngineConfig

MAX_RUNNING_REQUESTS = 32

# How the experts and the attention are spread over ranks; every one uses our MoE layer.
PARALLEL: dict[str, dict[str, Any]] = {
    "tp2-ep2": {"tp_size": 2},
    "tp4-ep4": {"tp_size": 4},
    "dp2-attention-ep2": {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True},
}


def stock(checkpoint: Path, dtype: str, *patches: str, **arguments: Any) -> EngineConfig:
    """SGLang on one rank of the host platform, our MoE layer off."""
    return EngineConfig(
        {
            "model_path": str(checkpoint),
            "device": "cpu",
            "dtype": dtype,
            "log_level": "info",
            "random_seed": 0,
            "max_running_requests": MAX_RUNNING_REQUESTS,
            **arguments,
        },
        patches,
    )


def stock_on_npu(checkpoint: Path, *patches: str, **arguments: Any) -> EngineConfig:
    """SGLang in bfloat16 on one emulated NPU, our MoE layer off; for its fork server."""
    defaults = {"device": "npu", "mem_fraction_static": 0.5, "disable_cuda_graph": True}
    return stock(checkpoint, "bfloat16", *patches, **{**defaults, **arguments})


def ours(checkpoint: Path, dtype: str, *patches: str, **arguments: Any) -> EngineConfig:
    """Our MoE layer on two ranks, if `arguments` do not say otherwise; every row is verified where that exists."""
    verify = arguments.get("ascend_moe_schedule") != "collective"
    # Every graph takes a moment to capture: two batch sizes, and larger batches run without.
    graphs = {"cuda_graph_bs_decode": [4, 16]}
    defaults = {"tp_size": 2, "ascend_moe": True, "ascend_moe_verify": verify, **graphs}
    return stock(checkpoint, dtype, *patches, **{**defaults, **arguments})


def ours_on_npu(checkpoint: Path, *patches: str, **arguments: Any) -> EngineConfig:
    """Our MoE layer in bfloat16 on two emulated NPUs, if `arguments` do not say otherwise; for their fork server."""
    return stock_on_npu(checkpoint, *patches, **{"tp_size": 2, "ascend_moe": True, **arguments})
