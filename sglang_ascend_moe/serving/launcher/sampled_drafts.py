"""Sampled requests where NPUs draft: SGLang verifies their drafts with kernels that an image may lack."""

from collections.abc import Mapping
from typing import Any

from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.npu.sampling_kernels import missing_kernels

GREEDY_BELOW = 1e-6
"""The temperature below which SGLang takes the likeliest token."""


def refuse_unverifiable(server_args: Any, sampling: Mapping[str, Any]) -> None:
    """Raise ValueError if ranks would end for want of a kernel. sampling: the parameters of a request."""
    if not server_args.speculative_algorithm or device_of(server_args) != "npu":
        return
    temperature = sampling.get("temperature")
    greedy = sampling.get("top_k") == 1 or (isinstance(temperature, int | float) and temperature < GREEDY_BELOW)
    if not greedy and (missing := missing_kernels()):
        raise ValueError(
            "temperature: tokens that are drafted cannot be sampled, because sgl_kernel_npu has no"
            f" {' and no '.join(missing)} here; ask with temperature 0, or let the server have a newer sgl_kernel_npu"
            " or no --speculative-algorithm"
        )
