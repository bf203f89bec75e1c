"""Builds what the exchange needs of CANN, torch_npu and memfabric over the emulated NPU, and our libraries on top.

Everything is compiled against the real headers of the wheels. The library for Ascend devices and the one for torch are
ours, unchanged, under the names that `ascend-moe build-kernels` gives them; its kernels run on the host model.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.ascend.host_model import FOLDERS, HOST_SOURCES, KERNEL_SOURCES, KERNELS, MODEL_SOURCES
from tests.npu.cann.library_names import CANN, KERNELS_LIBRARY, MEMFABRIC, TORCH_LIBRARY
from tests.npu.device.build import FLAGS, LIBRARY, alone, torch_folder

HERE = Path(__file__).parent
DEVICE = KERNELS / "ascend" / "device"
STAND_IN = HERE.parents[1] / "ascend" / "cann_stand_in"

OF_CANN = ("grouped_products", "runtime", "torch_npu", "torch_queue")
OF_TORCH = ("torch_binding.cpp", "expert_products.cpp")
"""The library for torch."""

OF_HOST = ("routing", "segments")
"""Host code that is part of the library for Ascend devices."""


class Headers(NamedTuple):
    """The folders `include` of the wheels of torch_npu and memfabric."""

    torch_npu: Path
    memfabric: Path


class Library(NamedTuple):
    """One library: its sources, and the names of the libraries beside it that it calls."""

    name: str
    sources: Sequence[Path]
    needs: Sequence[str] = ()
    of_torch: bool = False


def libraries(device_library: Path) -> list[Library]:
    """What is built, in an order in which it can be linked."""
    device = device_library.name
    own = [DEVICE / f"{name}.cpp" for name in ("announce", "device_session", "exchange_library", "watcher")]
    model = [STAND_IN / "launch_on_model.cpp", *MODEL_SOURCES]
    host = [path for path in HOST_SOURCES if path.stem in OF_HOST]
    return [
        Library(CANN, [HERE / f"{name}.cpp" for name in OF_CANN], [device], True),
        Library(MEMFABRIC, [HERE / "memfabric.cpp"], [device]),
        Library(KERNELS_LIBRARY, [*own, *model, *KERNEL_SOURCES, *host], [CANN]),
        Library(TORCH_LIBRARY, [DEVICE / name for name in OF_TORCH], [KERNELS_LIBRARY, CANN], True),
    ]


def build(device_library: Path, headers: Headers) -> Path:
    """Compiles the libraries into the folder of `device_library`, the emulated NPU's; returns that folder."""
    folder = device_library.parent
    wanted = libraries(device_library)
    with ThreadPoolExecutor(2) as compilers:
        jobs = [(library, source, headers, folder) for library in wanted for source in library.sources]
        list(compilers.map(lambda job: _compile(*job), jobs))
    for library in wanted:
        _link(library, folder)
    return folder


def build_once(device_library: Path, headers: Headers) -> Path:
    """As `build`, unless another process has done or does it."""
    with alone(device_library.parent):
        return build(device_library, headers) if not _are_built(device_library) else device_library.parent


def _are_built(device_library: Path) -> bool:
    return (device_library.parent / libraries(device_library)[-1].name).exists()


def build_again(folder: Path, headers: Headers, changed: Path) -> None:
    """Compiles and links once more what a source of ours is part of, of libraries that are in `folder`.

    changed: a source, or a header that those in its folder include, in a copy of the folder `kernels`.
    """
    for library in libraries(folder / LIBRARY):
        touched = [source for source in library.sources if _is_touched(source, changed)]
        for source in touched:
            # Others may have the file too, by a link.
            _object(library, source, folder).unlink()
            _compile(library, changed.parent / source.name, headers, folder)
        if touched:
            (folder / library.name).unlink()
            _link(library, folder)


def _is_touched(source: Path, changed: Path) -> bool:
    if source.parent.name != changed.parent.name:
        return False
    return source.name == changed.name or (changed.suffix == ".h" and source.name not in OF_TORCH)


def _object(library: Library, source: Path, folder: Path) -> Path:
    return folder / f"{library.name}-{source.stem}.o"


def _compile(library: Library, source: Path, headers: Headers, folder: Path) -> None:
    system = [headers.torch_npu, headers.torch_npu / "third_party/acl/inc", headers.memfabric / "smem/host"]
    if library.of_torch:
        torch = torch_folder() / "include"
        system = [torch, torch / "torch/csrc/api/include", Path(sysconfig.get_path("include")), *system]
    is_ours = library.name in (KERNELS_LIBRARY, TORCH_LIBRARY)
    own = [DEVICE, *(KERNELS / name for name in FOLDERS)] if is_ours else [HERE, HERE.parent / "device"]
    # What one of the stand-ins defines, the libraries above it have to see.
    flags = FLAGS if is_ours else [flag for flag in FLAGS if flag != "-fvisibility=hidden"]
    command = [
        *os.environ.get("CXX", "g++").split(), *flags, "-ffp-contract=off", *(f"-I{path}" for path in (*own, STAND_IN)),
        *(word for path in system for word in ("-isystem", str(path))),
        "-c", str(source), "-o", str(_object(library, source, folder)),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=240)


def _link(library: Library, folder: Path) -> None:
    objects = [str(_object(library, source, folder)) for source in library.sources]
    needs = [f"-l:{name}" for name in library.needs]
    torch = [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu", "-lc10"] if library.of_torch else []
    command = [
        *os.environ.get("CXX", "g++").split(), "-shared", "-pthread", *objects, f"-L{folder}", *needs, *torch,
        "-Wl,-rpath,$ORIGIN", f"-Wl,-rpath,{torch_folder() / 'lib'}", "-Wl,--no-undefined", "-o",
        str(folder / library.name),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)
