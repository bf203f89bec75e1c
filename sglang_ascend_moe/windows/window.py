"""What the exchange needs of a window, wherever its memory is."""

from __future__ import annotations

from typing import Protocol

import torch


class Window(Protocol):
    """One rank's window as this process reaches it."""

    device: torch.device
    address: int

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The bytes from `offset` on as a tensor, without a copy."""
