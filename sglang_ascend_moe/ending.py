"""How a server with `--ascend-moe` ends when one of its processes fails: with exit code 1 and the cause as last line.

SGLang's launcher is told by SIGQUIT only, and ends itself with SIGKILL. Here a worker writes down what it raised, in
memory of the launcher that has no name; the launcher watches its ranks, and says at the end who failed first. Each
function without underscore, but for `root_cause`, is a row of the table in `plugin`.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from sglang_ascend_moe.errors import PeerFault
from sglang_ascend_moe.options import options_of

logger = logging.getLogger(__name__)

STOPPED_CHECKS = 10
"""Checks, one a second, for which a rank may be stopped (SIGSTOP). Counted, so that a stop of all does not matter."""
SCHEDULER_TITLE = "sglang::scheduler"
EXIT_CODE = 1
# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_reports"
_LONGEST_ERROR = 2000

_watched: "dict[int, Watched]" = {}
_reports: int | None = None


class Report(msgspec.Struct, frozen=True):
    """What ended a process: its title and id, the exception, and whether that blames another process."""

    title: str
    process: int
    error: str
    blames_peer: bool


class Watched:
    """A rank as the launcher sees it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.checks_stopped = 0
        self.fault = ""


class Finding(NamedTuple):
    """A rank that has ended or stopped, in words."""

    process: int
    fault: str


def make_room_for_reports(_engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """Before `Engine._launch_scheduler_processes`: every process learns where to write down what ended it."""
    global _reports
    _watched.clear()
    if _reports is not None:
        os.close(_reports)
        _reports = None
    if options_of(server_args) is None:
        return
    _reports = os.memfd_create("what ended processes")
    setattr(server_args, _ATTRIBUTE, f"/proc/{os.getpid()}/fd/{_reports}")


def report_exception(*_: Any, **__: Any) -> None:
    """Before `get_exception_traceback` in a scheduler or controller, which is about to end with an exception."""
    from sglang.srt.runtime_context import get_server_args

    path = getattr(get_server_args(), _ATTRIBUTE, None)
    error = sys.exception()
    if path is None or error is None:
        return
    report = Report(
        title=_title(os.getpid()), process=os.getpid(), error=_in_words(error), blames_peer=_blames_peer(error)
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
    if _reports is None:
        return original(watchdog)
    if not _watched:
        _watched.update({process: Watched(title) for process, title in _descendants() if SCHEDULER_TITLE in title})
    ended = original(watchdog)
    findings = _look()
    if findings and not ended:
        logger.error("A rank does not work any more: %s", "; ".join(finding.fault for finding in findings))
        os.kill(os.getpid(), signal.SIGQUIT)
    return ended or bool(findings)


def _descendants() -> list[tuple[int, str]]:
    import psutil

    return [(child.pid, _title(child.pid)) for child in psutil.Process().children(recursive=True)]


def _title(process: int) -> str:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def _look() -> list[Finding]:
    for process, watched in _watched.items():
        state = _state(process)
        watched.checks_stopped = watched.checks_stopped + 1 if state == "T" else 0
        if state in ("", "Z"):
            watched.fault = watched.fault or f"{watched.title} (process {process}) was killed, or crashed"
        elif watched.checks_stopped >= STOPPED_CHECKS:
            watched.fault = f"{watched.title} (process {process}) has been stopped for {STOPPED_CHECKS} s (SIGSTOP)"
    return [Finding(process, watched.fault) for process, watched in _watched.items() if watched.fault]


def _state(process: int) -> str:
    """The state of a process as in `/proc`, empty when it is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def end_by_name(original: Callable[..., None], parent_pid: int | None = None, *rest: Any, **keywords: Any) -> None:
    """Around `kill_process_tree`: where SGLang ends its own process too, that exits with code 1 and names the cause."""
    itself = parent_pid == os.getpid() and not rest and keywords.get("include_parent", True)
    if _reports is None or not itself:
        original(parent_pid, *rest, **keywords)
        return
    cause = root_cause(_read_reports(), _look())
    try:
        original(parent_pid, **{**keywords, "include_parent": False})
    finally:
        sys.stdout.flush()
        print(f"The server ends: {cause}", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)


def warm_up_in_background(original: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Around `_wait_and_warmup`, the thread that SGLang waits for when its server ends.

    A server that is stopped before it is warm does not answer this thread any more, which asks it for two minutes.
    """
    if _reports is None:
        original(*arguments, **keywords)
        return
    threading.Thread(target=original, args=arguments, kwargs=keywords, daemon=True).start()


def _read_reports() -> list[Report]:
    lines = os.pread(_reports, os.fstat(_reports).st_size, 0).splitlines() if _reports is not None else []
    reports = []
    for line in lines:
        # A process that is killed while it writes leaves a part of its line.
        with contextlib.suppress(msgspec.DecodeError):
            reports.append(msgspec.json.decode(line, type=Report))
    return reports


def root_cause(reports: Sequence[Report], findings: Sequence[Finding]) -> str:
    """Who failed first, in words: a process that blames nobody, else a rank that is gone or stopped without a report.

    reports: in the order of their time.
    """
    said = [f"{report.title} (process {report.process}) raised {report.error}" for report in reports]
    for report, words in zip(reports, said, strict=True):
        if not report.blames_peer:
            return words
    reported = {report.process for report in reports}
    silent = [finding.fault for finding in findings if finding.process not in reported]
    return [*silent, *said, "a process of it failed; the log says which one"][0]
