"""Whether torch_npu, through which torch finds NPUs, is installed; told without importing torch."""

import importlib.util

from sglang_ascend_moe.errors import Unsupported


def refuse_absent_torch_npu() -> None:
    """Raise `Unsupported`, saying what to do, if torch_npu is not installed."""
    if importlib.util.find_spec("torch_npu") is None:
        raise Unsupported(
            "--device npu: torch_npu is not installed. Install sglang-ascend-moe[npu] on a machine with Ascend NPUs, or"
            " use --device cpu"
        )
