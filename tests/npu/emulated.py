"""Makes the emulated NPU the `npu` of a process."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.npu.device import library, module

MEMORY_BYTES = 4 << 30
SEED_AT_ONCE = 0
"""Work runs as soon as its stream gets to it."""

SEED_WHEN_AWAITED = -1
"""Work runs when the host waits for it, and not before."""


def install(device_library: Path, memory_bytes: int = MEMORY_BYTES, seed: int = SEED_AT_ONCE, devices: int = 8) -> None:
    """Call it before anything imports SGLang.

    device_library: what `tests.npu.device.build` has made; memory_bytes: of the one die that this process may open;
    seed: how late work on streams runs, a number above 0 draws it; devices: how many there are to choose from.
    """
    library.load(device_library)
    sys.modules["torch.npu"] = module.install(devices, memory_bytes, seed)
