"""SGLang platform entry point: the host platform, on machines that have no accelerator."""

import os
from pathlib import Path

HOST_PLATFORM = "sglang_ascend_moe.platforms.host.HostPlatform"


def activate() -> str | None:
    """Dotted name of the host platform's class, or None when this machine must not use it.

    None when torch sees an accelerator, when Ascend devices exist although torch_npu is missing, and when
    `SGLANG_USE_CPU_ENGINE=1` asks for SGLang's own CPU platform.
    """
    import torch

    stock_cpu = os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"
    if stock_cpu or torch.accelerator.is_available() or ascend_device_nodes():
        return None
    return HOST_PLATFORM


def ascend_device_nodes() -> list[Path]:
    """Device files of the Ascend NPUs of this machine (`/dev/davinci0`, ...)."""
    return sorted(Path("/dev").glob("davinci[0-9]*"))
