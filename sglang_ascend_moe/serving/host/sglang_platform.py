"""The SGLang platform for a machine without an accelerator: `--device cpu` with the PyPI build of SGLang."""

from collections.abc import Callable

import torch
from sglang.srt.platforms import interface
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from sglang_ascend_moe.serving.host import earlier_platform
from sglang_ascend_moe.serving.host.speculation import verified_places
from sglang_ascend_moe.serving.host_platform import HOST_ATTENTION

SPECULATION = ("EAGLE", "EAGLE3")
"""Algorithms for which the host has what SGLang computes with kernels elsewhere; NEXTN is a name of the first."""


class HostPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's CPU device operations as an out-of-tree platform.

    SGLang's in-tree CPU platform needs kernels that its PyPI build lacks; an out-of-tree platform is served by the
    torch-native form of every layer.
    """

    _enum = PlatformEnum.OOT
    if hasattr(interface, "PlatformCapabilities"):
        capabilities = interface.PlatformCapabilities(graph_capture=True)
    else:
        support_cuda_graph = earlier_platform.support_cuda_graph
        get_mha_kv_pool_cls = earlier_platform.get_mha_kv_pool_cls
        get_mla_kv_pool_cls = earlier_platform.get_mla_kv_pool_cls
        get_paged_allocator_cls = earlier_platform.get_paged_allocator_cls

    def get_device(self, device_id: int | None = None) -> str:  # noqa: ARG002 - SGLang's signature
        """The value of `--device` where none is given, which SGLang takes apart as text."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def init_backend(self) -> None:
        """In each worker, before the attention backend is made."""
        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        from sglang_ascend_moe.graph_capture.runners.host_decode import make_attention

        register_attention_backend(HOST_ATTENTION)(make_attention)

    def get_graph_runner_cls(self) -> type:
        from sglang_ascend_moe.graph_capture.runners.host_runner import HostGraphRunner

        return HostGraphRunner

    def get_full_graph_backend_cls(self) -> type:
        from sglang_ascend_moe.graph_capture.runners.host_runner import HostGraphBackend

        return HostGraphBackend

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return algorithm in SPECULATION

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        return verified_places

    def get_compile_backend(self, mode: str | None = None) -> str:  # noqa: ARG002 - SGLang's signature
        # SGLang compiles a few small functions of its routers: seconds of C++ compilation in every process.
        return "eager"

    def get_torch_profiler_activity_str(self) -> str:
        """By which `/start_profile` names what the profiler records of this device."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU
