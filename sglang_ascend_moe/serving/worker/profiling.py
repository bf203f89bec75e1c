"""Profiles that a rank cannot start or write do not end it, and have the steps of its exchanges: hooks of
`worker_hooks`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.worker import layer

logger = logging.getLogger(__name__)


def start_or_stop(original: Callable[..., Any], profiles: Any, recv_req: Any) -> Any:
    """Around `SchedulerProfilerManager._profile`: a second profile does not take the place of one that runs.

    SGLang would forget the first, which nobody could stop then.
    """
    from sglang.srt.managers.io_struct import ProfileReqOutput, ProfileReqType

    if recv_req.req_type is ProfileReqType.START_PROFILE and getattr(profiles, "profile_in_progress", False):
        return ProfileReqOutput(success=False, message="a profile is being taken; end it with /stop_profile before")
    return original(profiles, recv_req)


def step(original: Callable[..., Any], profiles: Any, batch: Any) -> Any:
    """Around `SchedulerProfilerManager._profile_batch_predicate`: of two stages one is profiled after the other.

    SGLang begins a stage in the call that ends another one, or while it still runs. But `run_batch` is a span of the
    profile that ends, and torch writes when a span ends into what its profile has freed, unless no profile runs then.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    if getattr(profiles, "profile_by_stage", False) and profiles.profile_in_progress:
        if batch.forward_mode.is_decode() and profiles.profiler_decode_ct == 0:
            return profiles._stop_profile(stage=ForwardMode.EXTEND)
        if batch.forward_mode.is_prefill() and profiles.profiler_prefill_ct == 0:
            return None
    return original(profiles, batch)


def stop(original: Callable[..., Any], profiles: Any, stage: Any = None) -> Any:
    """Around `SchedulerProfilerManager._stop_profile`: a trace that cannot be written is lost, and nothing else.

    The other ranks wait for this one after it has written, so it must not leave before.
    """
    from sglang.srt.managers.io_struct import ProfileReqOutput

    problem = ""

    def write(export: Callable[..., Any], *path: str, **how: Any) -> None:
        nonlocal problem
        try:
            export(*path, **how)
        except OSError as error:
            problem = f"the trace cannot be written: {error}"
            logger.error(problem)

    running = getattr(profiles, "torch_profiler", None)
    if running is not None:
        export = running.export_chrome_trace
        running.export_chrome_trace = lambda *path, **how: write(export, *path, **how)
    answer = original(profiles, stage)
    return ProfileReqOutput(success=False, message=problem) if problem else answer


def trace_steps(answer: Any, profiles: Any, stage: Any = None) -> None:
    """After `SchedulerProfilerManager._start_profile`: exchanges write down their steps in the profile's folder.

    In one of its own there for each profile, and for each of its stages that is profiled apart, so that none takes the
    place of another. Nothing where `--ascend-moe-trace` has them do so anyway.
    """
    folder = getattr(profiles, "torch_profiler_output_dir", None)
    if folder is None or not answer.success or not _traces_profiles():
        return
    try:
        name = f"{profiles.profile_id}-steps" + (f"-{stage.name}" if stage else "")
        layer.trace_into(Path(folder) / name, layer.exchanges())
    except InvalidInput as error:
        logger.error("a profile has no steps of exchanges: %s; give another output_dir", error)


def end_trace(*_: Any, **__: Any) -> None:
    """After `SchedulerProfilerManager._stop_profile`."""
    if _traces_profiles():
        layer.trace_into(None, layer.exchanges())


def _traces_profiles() -> bool:
    serving = layer.serving()
    return serving is not None and serving.options.trace is None
