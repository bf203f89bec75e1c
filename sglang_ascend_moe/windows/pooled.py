"""Which provider gives the windows of an Ascend device: the one that is asked for, or the first that is installed.

No NPU has run this.
"""

from __future__ import annotations

from types import ModuleType

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.windows import aclshmem, memfabric

PROVIDERS: dict[str, ModuleType] = {"memfabric": memfabric, "aclshmem": aclshmem}
"""By the values of --ascend-moe-windows, in the order in which they are taken."""


def provider(asked: str | None) -> ModuleType:
    """The module of `asked`; None: of the first provider that is installed. Raises `Unsupported` for one that is not.

    Each has `meeting() -> bytes`, for rank 0, and `open_pool(place) -> Pool`, for all ranks together.
    """
    names = [asked] if asked else list(PROVIDERS)
    for name in names:
        if PROVIDERS[name].is_installed():
            return PROVIDERS[name]
    packages = " nor ".join(PROVIDERS[name].PACKAGE for name in names)
    raise Unsupported(
        f"windows of an NPU need pooled memory, and the Python package {packages} is not installed. Install"
        " sglang-ascend-moe[npu], which has memfabric-hybrid, or choose with --ascend-moe-windows"
    )
