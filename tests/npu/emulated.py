"""Makes the emulated NPU the `npu` of a process, or of every process that is started with an environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

MEMORY_BYTES = 4 << 30
SEED_AT_ONCE = 0
"""Work runs as soon as its stream gets to it."""

SEED_WHEN_AWAITED = -1
"""Work runs when the host waits for it, and not before."""

VARIABLE = "EMULATED_NPU"
"""Of the environment: the `Settings` of the processes that have it."""

_REPOSITORY = Path(__file__).parents[2]
_ENTRY_POINTS = """
[torch.backends]
emulated_npu = tests.npu.emulated:install_from_environment
[sglang.srt.plugins]
emulated_npu = tests.npu.forked_processes:register
"""
_METADATA = "Metadata-Version: 2.1\nName: emulated-npu\nVersion: 0\n"


class Settings(msgspec.Struct, frozen=True):
    """device_library: what `tests.npu.device.build` has made; memory_bytes: of the one die that a process may open;
    seed: how late work on streams runs, a number above 0 draws it; devices: how many there are to choose from;
    exchange_libraries: the folder that `tests.npu.cann.build_cann` has filled, None where nothing is exchanged.
    """

    device_library: str
    memory_bytes: int = MEMORY_BYTES
    seed: int = SEED_AT_ONCE
    devices: int = 8
    exchange_libraries: str | None = None


def install(settings: Settings) -> None:
    """`torch.npu`, `torch_npu` and `sgl_kernel_npu` are there from now on, and with `exchange_libraries` memfabric and
    our libraries for Ascend devices. Call it before anything imports SGLang.
    """
    from tests.npu.cann import install_cann
    from tests.npu.device import collectives, library, module
    from tests.npu.operators import modules, triton_kernels

    library.load(Path(settings.device_library))
    sys.modules["torch.npu"] = module.install(settings.devices, settings.memory_bytes, settings.seed)
    collectives.register()
    modules.install()
    triton_kernels.install()
    if settings.exchange_libraries is not None:
        install_cann.install(Path(settings.exchange_libraries))


def environment(folder: Path, settings: Settings) -> dict[str, str]:
    """Processes with these variables have an emulated NPU as soon as they import torch, which finds it as it finds
    torch_npu: by the entry point of a distribution, here one that is made in `folder`. Triton interprets its kernels,
    SGLang forks its processes.
    """
    described = folder / "emulated_npu-0.dist-info"
    described.mkdir(exist_ok=True)
    (described / "METADATA").write_text(_METADATA)
    (described / "entry_points.txt").write_text(_ENTRY_POINTS)
    path = os.pathsep.join([str(folder), str(_REPOSITORY)])
    variables = {"PYTHONPATH": path, VARIABLE: msgspec.json.encode(settings).decode()}
    return {**variables, "TRITON_INTERPRET": "1"}


def install_from_environment() -> None:
    """What torch calls."""
    install(msgspec.json.decode(os.environ[VARIABLE], type=Settings))
