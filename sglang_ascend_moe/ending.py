"""How a server with `--ascend-moe` ends when one of its processes fails: with exit code 1 and the cause as last line.

SGLang's launcher is told by SIGQUIT only, and ends itself with SIGKILL. Here a worker writes down what it raised, in
memory of the launcher that has no name; the launcher watches its ranks, and says at the end who failed first. A process
may launch several engines: each has `EngineProcesses` of its own.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sglang_ascend_moe.engine_processes import EngineProcesses, Finding, Report, title_of
from sglang_ascend_moe.errors import PeerFault
from sglang_ascend_moe.hooks import Hook, Kind, launcher_hook
from sglang_ascend_moe.options import options_of

logger = logging.getLogger(__name__)

EXIT_CODE = 1
# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_reports"
_LONGEST_ERROR = 2000


# The engines of this process that have not ended: SGLang ends all of them together, and does not say which one failed.
_engines: list[EngineProcesses] = []
os.register_at_fork(after_in_child=_engines.clear)


def make_room_for_reports(_engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """Before `Engine._launch_scheduler_processes`: every process learns where to write down what ended it."""
    if options_of(server_args) is None:
        return
    for engine in [engine for engine in _engines if engine.has_ended()]:
        _engines.remove(engine)
        engine.close()
    _engines.append(EngineProcesses())
    setattr(server_args, _ATTRIBUTE, _engines[-1].path)


def keep_processes(result: tuple[Any, Any], _engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """After it: those who have learned that are known to belong together."""
    for engine in _engines:
        if engine.path == getattr(server_args, _ATTRIBUTE, None):
            engine.processes = result[1] or ()


def report_exception(*_: Any, **__: Any) -> None:
    """Before `get_exception_traceback` in a scheduler or controller, which is about to end with an exception."""
    from sglang.srt.runtime_context import get_server_args

    path = getattr(get_server_args(), _ATTRIBUTE, None)
    error = sys.exception()
    if path is None or error is None:
        return
    report = Report(
        title=title_of(os.getpid()), process=os.getpid(), error=_in_words(error), blames_peer=_blames_peer(error)
    )
    # The launcher may have gone already.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, msgspec.json.encode(report) + b"\n")
        os.close(descriptor)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_ERROR]


def _blames_peer(error: BaseException) -> bool:
    # gloo says "Connection closed by peer" and "Connection reset by peer".
    return isinstance(error, PeerFault) or "by peer" in str(error)


def check_ranks(original: Callable[[Any], bool], watchdog: Any) -> bool:
    """Around `SubprocessWatchdog._check_processes`, once a second: ranks that have stopped, or ended, end the server.

    SGLang looks at its own children only, and with data-parallel attention the ranks are children of a controller.
    """
    engine = next((engine for engine in _engines if engine.is_watched_by(watchdog)), None)
    if engine is None:
        return original(watchdog)
    engine.find_ranks()
    ended = original(watchdog)
    findings = engine.findings()
    if findings and not ended:
        logger.error("A rank does not work any more: %s", "; ".join(finding.fault for finding in findings))
        os.kill(os.getpid(), signal.SIGQUIT)
    return ended or bool(findings)


def end_by_name(
    original: Callable[..., None],
    parent_pid: int | None = None,
    include_parent: bool = True,
    *rest: Any,
    **keywords: Any,
) -> None:
    """Around `kill_process_tree`: where SGLang ends its own process too, that exits with code 1 and names the cause.

    Where it ends all children but not itself, an engine is shut down, which no rank is to blame for.
    """
    if parent_pid != os.getpid() or not _engines:
        original(parent_pid, include_parent, *rest, **keywords)
        return
    if not include_parent:
        engines, _engines[:] = list(_engines), []
        original(parent_pid, include_parent, *rest, **keywords)
        for engine in engines:
            engine.close()
        return
    reports = [report for engine in _engines for report in engine.reports()]
    cause = root_cause(reports, [finding for engine in _engines for finding in engine.findings()])
    try:
        original(parent_pid, False, *rest, **keywords)
    finally:
        sys.stdout.flush()
        print(f"The server ends: {cause}", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)


def warm_up_in_background(original: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Around `_wait_and_warmup`, the thread that SGLang waits for when its server ends.

    A server that is stopped before it is warm does not answer this thread any more, which asks it for two minutes.
    """
    if not _engines:
        original(*arguments, **keywords)
        return
    threading.Thread(target=original, args=arguments, kwargs=keywords, daemon=True).start()


def root_cause(reports: Sequence[Report], findings: Sequence[Finding]) -> str:
    """Who failed first, in words: a process that blames nobody, else a rank that is gone or stopped without a report.

    reports: in the order of their time, for each engine.
    """
    said = [f"{report.title} (process {report.process}) raised {report.error}" for report in reports]
    for report, words in zip(reports, said, strict=True):
        if not report.blames_peer:
            return words
    reported = {report.process for report in reports}
    silent = [finding.fault for finding in findings if finding.process not in reported]
    return [*silent, *said, "a process of it failed; the log says which one"][0]


_SRT = "sglang.srt"
HOOKS: tuple[Hook, ...] = (
    *(
        launcher_hook(
            f"{_SRT}.entrypoints.engine.Engine._launch_scheduler_processes",
            kind,
            function,
            "a worker has to tell the launcher what ended it, which SGLang's signal does not say",
        )
        for kind, function in ((Kind.BEFORE, make_room_for_reports), (Kind.AFTER, keep_processes))
    ),
    *(
        Hook(
            f"{_SRT}.managers.{module}.get_exception_traceback",
            Kind.BEFORE,
            report_exception,
            "SGLang only logs what ended a scheduler, or the controller of data-parallel attention",
        )
        for module in ("scheduler", "data_parallel_controller")
    ),
    launcher_hook(
        f"{_SRT}.utils.watchdog.SubprocessWatchdog._check_processes",
        Kind.AROUND,
        check_ranks,
        "a stopped rank would hold up the others for ever, and one that dies behind a controller may not be noticed",
    ),
    *(
        launcher_hook(
            f"{_SRT}.{module}.kill_process_tree",
            Kind.AROUND,
            end_by_name,
            "SGLang ends the launcher with SIGKILL, so that neither exit code nor last line tell the cause",
        )
        for module in ("entrypoints.engine", "entrypoints.http_server", "managers.tokenizer_manager")
    ),
    launcher_hook(
        f"{_SRT}.entrypoints.http_server._wait_and_warmup",
        Kind.AROUND,
        warm_up_in_background,
        "a server that is stopped before it is warm waits two minutes for its own warm-up, which it does not answer",
    ),
)
"""Rows of the table in plugin.py."""
