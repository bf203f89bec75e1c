"""Profiles that a rank cannot start or write do not end it: hooks of `worker_hooks`."""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def start_or_stop(original: Callable[..., Any], profiles: Any, recv_req: Any) -> Any:
    """Around `SchedulerProfilerManager._profile`: a second profile does not take the place of one that runs.

    SGLang would forget the first, which nobody could stop then.
    """
    from sglang.srt.managers.io_struct import ProfileReqOutput, ProfileReqType

    if recv_req.req_type is ProfileReqType.START_PROFILE and getattr(profiles, "profile_in_progress", False):
        return ProfileReqOutput(success=False, message="a profile is being taken; end it with /stop_profile before")
    return original(profiles, recv_req)


def stop(original: Callable[..., Any], profiles: Any, stage: Any = None) -> Any:
    """Around `SchedulerProfilerManager._stop_profile`: a trace that cannot be written is lost, and nothing else.

    The other ranks wait for this one after it has written, so it must not leave before.
    """
    from sglang.srt.managers.io_struct import ProfileReqOutput

    problem = ""

    def write(export: Callable[[str], Any], path: str) -> None:
        nonlocal problem
        try:
            export(path)
        except OSError as error:
            problem = f"the trace cannot be written: {error}"
            logger.error(problem)

    running = getattr(profiles, "torch_profiler", None)
    if running is not None:
        export = running.export_chrome_trace
        running.export_chrome_trace = lambda path: write(export, path)
    answer = original(profiles, stage)
    return ProfileReqOutput(success=False, message=problem) if problem else answer
