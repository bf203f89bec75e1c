"""Zeros that take no memory until they are written or read."""

import mmap
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

LEAST_BYTES = 2**20


class UntouchedZeros(TorchFunctionMode):
    """A context in which `torch.zeros` of at least `LEAST_BYTES` on the CPU takes pages that the kernel gives when they
    are used, in place of writing every one at once. `allocated` counts their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        keywords = kwargs or {}
        if function is torch.zeros and not keywords.get("pin_memory") and keywords.get("out") is None:
            device = torch.device(keywords.get("device") or torch.get_default_device())
            if device.type == "cpu":
                like = torch.empty(*args, **{**keywords, "device": "meta"})
                if like.nbytes >= LEAST_BYTES:
                    self.allocated += like.nbytes
                    return _untouched(like)
        return function(*args, **keywords)


def _untouched(like: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape and dtype of `like`; the pages live as long as the tensor."""
    pages = mmap.mmap(-1, like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    zeros = torch.frombuffer(pages, dtype=torch.uint8).view(like.dtype).view(like.shape)
    return zeros.requires_grad_(like.requires_grad)
