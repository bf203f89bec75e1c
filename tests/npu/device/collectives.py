"""The backend `hccl` of torch.distributed: collectives of gloo, on the streams of the emulated NPU."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from tests.npu.device.library import native


def _create(group: Any, options: Any) -> Any:  # noqa: ARG001 - those of HCCL say how large its buffers are
    timeout = group.timeout if isinstance(group.timeout, timedelta) else timedelta(seconds=group.timeout)
    gloo = dist.ProcessGroupGloo(group.store, group.group_rank, group.group_size, timeout=timeout)
    return native().collectives_over(gloo)


def register() -> None:
    """Makes it a backend of torch.distributed, as torch_npu does."""
    dist.Backend.register_backend("hccl", _create, extended_api=True, devices="npu")
