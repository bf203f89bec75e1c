"""The SGLang platform for a machine without an accelerator: `--device cpu` with the PyPI build of SGLang."""

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class HostPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's CPU device operations as an out-of-tree platform.

    SGLang's in-tree CPU platform needs kernels that its PyPI build lacks; an out-of-tree platform is served by the
    torch-native form of every layer.
    """

    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:  # noqa: ARG002 - SGLang's signature
        # SGLang compiles a few small functions of its routers: seconds of C++ compilation in every process.
        return "eager"
