"""Whether this machine has what `--device npu` needs, asked before any process of a server is started.

No NPU has run this.
"""

import importlib
from typing import Any

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.native import library
from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.npu.torch_npu_library import refuse_absent_torch_npu
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.windows.pooled import provider


def refuse_machine_without_npu(options: Options) -> None:
    """Raise `Unsupported`, saying what is missing and what to do, if NPUs cannot be used from this process."""
    refuse_absent_torch_npu()
    try:
        torch_npu: Any = importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise Unsupported(
            f"--device npu: torch_npu cannot be loaded ({error}). Source CANN's set_env.sh before the server is"
            " started, and install CANN and the torch_npu that fits this torch if they are not there: docs/ascend.md"
        ) from error
    if not torch_npu.npu.is_available():
        raise Unsupported(
            "--device npu: torch_npu sees no NPU. Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES, and that the container"
            " has /dev/davinci*"
        )
    if not hooks.on_npu():
        raise Unsupported(
            "--device npu: SGLang has chosen another platform on this machine; leave SGLANG_PLATFORM and"
            " SGLANG_USE_CPU_ENGINE unset"
        )
    library.own_library("npu")
    provider(options.windows)


def device_name() -> str:
    """What the NPUs of this machine call themselves; they can be used."""
    torch_npu: Any = importlib.import_module("torch_npu")
    return str(torch_npu.npu.get_device_name())
