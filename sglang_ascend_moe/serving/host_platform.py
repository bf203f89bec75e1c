"""SGLang platform entry point: the host platform, on machines that have no accelerator."""

import os
import sys
from pathlib import Path

HOST_ATTENTION = "ascend_moe_host"
"""Name of the attention backend whose decode a graph can hold, as for SGLang's `--attention-backend`."""

HOST_PLATFORM = "sglang_ascend_moe.serving.host.sglang_platform.HostPlatform"

ONLY_FOR_ACCELERATORS = ("flashinfer",)
"""Packages that SGLang imports wherever they are installed, and does without."""


def activate() -> str | None:
    """Dotted name of the host platform's class, or None when this machine must not use it.

    SGLang asks before it imports most of itself, so that it leaves out what only accelerators use: a sixth of the time.
    """
    if obstacle():
        return None
    for name in ONLY_FOR_ACCELERATORS:
        # Python's way to say that a package is not there.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    return HOST_PLATFORM


def obstacle() -> str:
    """Why this machine must not use the host platform; empty if it may."""
    import torch

    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return "SGLANG_USE_CPU_ENGINE=1 asks for SGLang's own CPU platform"
    if torch.accelerator.is_available():
        return f"torch sees an accelerator ({torch.accelerator.current_accelerator()})"
    if nodes := ascend_device_nodes():
        return f"Ascend devices exist ({nodes[0]}, ...), and torch_npu does not see them"
    return ""


def ascend_device_nodes() -> list[Path]:
    """Device files of the Ascend NPUs of this machine (`/dev/davinci0`, ...)."""
    return sorted(Path("/dev").glob("davinci[0-9]*"))
