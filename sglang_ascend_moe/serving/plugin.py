"""The entry point of SGLang's plugin group, and the one table of everything that is changed in SGLang.

Each folder has a table of its own; `ascend-moe doctor --hooks` prints them all, and says what became of each row.
"""

from sglang_ascend_moe.graph_capture.runners.runner_hooks import HOOKS as RUNNER_HOOKS
from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.hooks import Hook
from sglang_ascend_moe.serving.host.host_hooks import HOOKS as HOST_HOOKS
from sglang_ascend_moe.serving.launcher.launcher_hooks import HOOKS as LAUNCHER_HOOKS
from sglang_ascend_moe.serving.npu.npu_hooks import HOOKS as NPU_HOOKS
from sglang_ascend_moe.serving.worker.worker_hooks import HOOKS as WORKER_HOOKS

TABLE: tuple[Hook, ...] = (*LAUNCHER_HOOKS, *WORKER_HOOKS, *HOST_HOOKS, *NPU_HOOKS, *RUNNER_HOOKS)


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`; called in every process of a server."""
    hooks.install(TABLE)
