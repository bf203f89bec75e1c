"""`make demo-npu`: the demo on emulated NPUs.

What it needs is built once for a torch, into build/, and again when a source of it has changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.npu import emulated
from tests.npu.cann import build_cann
from tests.npu.cann.library_names import TORCH_LIBRARY
from tests.npu.device import build
from tests.versions.npu_wheels import MEMFABRIC, OWN_TORCH, TORCH_NPU, download

BUILT = Path(__file__).parents[2] / "build" / f"emulated-npu-{OWN_TORCH.replace(' ', '-')}"
DIE_BYTES = 1 << 30
WHAT_IT_IS = "This is an emulated NPU: test equipment, on the cores of this machine. No NPU takes part."


def libraries() -> Path:
    """The folder of the device and of what an exchange needs over it."""
    BUILT.mkdir(parents=True, exist_ok=True)
    if is_older_than_its_sources(BUILT):
        print("It is built, which takes two minutes ...", flush=True)
        device = build.build(BUILT)
        torch_npu = download(TORCH_NPU[OWN_TORCH], BUILT).extract("torch_npu/include/", BUILT)
        memfabric = download(MEMFABRIC, BUILT).extract("memfabric_hybrid/include/", BUILT)
        build_cann.build(device, build_cann.Headers(torch_npu, memfabric))
    return BUILT


def is_older_than_its_sources(folder: Path) -> bool:
    built = [folder / build.LIBRARY, folder / TORCH_LIBRARY]
    sources = [*build.SOURCES, *(path for library in build_cann.libraries(built[0]) for path in library.sources)]
    headers = [path for source in sources for path in source.parent.glob("*.h")]
    if not all(path.exists() for path in built):
        return True
    return min(path.stat().st_mtime for path in built) < max(path.stat().st_mtime for path in (*sources, *headers))


def main(arguments: list[str]) -> int:
    """Runs `ascend-moe demo --device npu`, with more arguments if they are given; returns its exit code."""
    print(WHAT_IT_IS, flush=True)
    folder = libraries()
    settings = emulated.Settings(str(folder / build.LIBRARY), DIE_BYTES, exchange_libraries=str(folder))
    with tempfile.TemporaryDirectory(prefix="emulated-npu-") as temporary:
        environment = {**os.environ, **emulated.environment(Path(temporary), settings)}
        command = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "demo", "--device", "npu", *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
