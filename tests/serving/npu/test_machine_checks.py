"""What `--device npu` needs is asked before anything is started, and each thing that is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.native import library
from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT
from sglang_ascend_moe.serving.npu import machine_checks
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.windows import aclshmem, memfabric

LACKS = {
    "torch_npu": "torch_npu is not installed. Install sglang-ascend-moe.npu.",
    "cann": r"torch_npu cannot be loaded .libhccl.so: cannot open.*set_env.sh",
    "devices": "torch_npu sees no NPU. Check npu-smi info",
    "platform": "SGLang has chosen another platform",
    "kernels": "the Ascend kernels are not built; run `ascend-moe build-kernels`",
    "pool": "memfabric_hybrid nor shmem is not installed.*--ascend-moe-windows",
}


def machine(patch: pytest.MonkeyPatch, folder: Path, lacks: str | None) -> None:
    """This machine looks as if it had everything that NPUs need, but one thing."""
    # Set first, so that what is imported here does not stay for other tests.
    patch.setitem(sys.modules, "torch_npu", None)
    patch.delitem(sys.modules, "torch_npu")
    if lacks != "torch_npu":
        fails = "raise ImportError('libhccl.so: cannot open shared object file')\n" if lacks == "cann" else ""
        devices = f"npu = SimpleNamespace(is_available=lambda: {lacks != 'devices'})\n"
        (folder / "torch_npu.py").write_text(f"{fails}from types import SimpleNamespace\n{devices}")
        patch.syspath_prepend(str(folder))
    patch.setattr(hooks, "on_npu", lambda: lacks != "platform")
    if lacks != "kernels":
        patch.setattr(library, "own_library", lambda _device: "libraries")
    patch.setattr(memfabric, "is_installed", lambda: lacks != "pool")
    patch.setattr(aclshmem, "is_installed", lambda: False)


@pytest.mark.parametrize("lacks", LACKS)
def test_what_is_missing_is_named_with_what_to_do(lacks, monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, lacks)
    with pytest.raises(Unsupported, match=LACKS[lacks]):
        machine_checks.refuse_machine_without_npu(Options())


def test_a_machine_that_has_everything_is_let_through(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, None)
    machine_checks.refuse_machine_without_npu(Options())
    assert isinstance(sys.modules["torch_npu"], ModuleType | SimpleNamespace)


@pytest.mark.nightly
def test_the_command_ends_with_its_exit_code_and_the_reason(tmp_path):
    command = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "serve", str(tmp_path), "--device", "npu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == CANNOT
    assert "torch_npu is not installed" in done.stderr
