"""Servers on emulated NPUs fork their processes, as those on a host do: SGLang is imported once, no die is open yet.

A plugin of SGLang, which the environment of an emulated NPU brings along.
"""


def register() -> None:
    """What SGLang calls."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_ascend_moe.serving.host import process_start

    for method in ("_launch_scheduler_processes", "_launch_detokenizer_subprocesses"):
        target = f"sglang.srt.entrypoints.engine.Engine.{method}"
        HookRegistry.register(target, process_start.launch_by_forking, HookType.AROUND)
    controller = "sglang.srt.managers.data_parallel_controller.DataParallelController"
    HookRegistry.register(f"{controller}.__init__", process_start.spawn_processes, HookType.BEFORE)
