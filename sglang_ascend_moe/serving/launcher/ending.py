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
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from sglang_ascend_moe.serving.blame import blames_peer
from sglang_ascend_moe.serving.launcher import command_line, interrupts, node_meeting, socket_folder
from sglang_ascend_moe.serving.launcher.engine_processes import STOPPED_CHECKS, EngineProcesses, title_of
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED
from sglang_ascend_moe.serving.launcher.node_link import NodeLink
from sglang_ascend_moe.serving.launcher.process_reports import Finding, Report, Started, say
from sglang_ascend_moe.serving.options import options_of

logger = logging.getLogger(__name__)

# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_reports"
_LONGEST_ERROR = 2000
# SGLang's functions that catch whatever is raised in a process, and end it.
_ENDED_BY_AN_EXCEPTION = (
    "run_scheduler_process", "run_data_parallel_controller_process", "run_detokenizer_process",
    "print_exception_wrapper",
)  # fmt: skip
CAUSE_SECONDS = 2.0
"""For which a launcher that was told of a failure waits to hear whose it is: victims may be faster than the culprit."""
_POLL_SECONDS = 0.02
_CHECK_SECONDS = 1.0


# The engines of this process that have not ended: SGLang ends all of them together, and does not say which one failed.
_engines: list[EngineProcesses] = []
# Processes of engines that were shut down. SGLang's watchdog may still look at them, and would take it for a crash.
_shut_down: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


class _End:
    """All processes of this one's engines are being ended, by one thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = threading.Event()


# The end that is under way, if one is. Not a lock: a signal may come to the thread that has it.
_ends: dict[str, _End] = {}


def _forget_in_child() -> None:
    _engines.clear()
    _ends.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def make_room_for_reports(_engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """Before `Engine._launch_scheduler_processes`: every process learns where to write down what ended it.

    Of a server of several nodes the launchers meet before. Raises as `node_meeting.meet`.
    """
    if options_of(server_args) is None:
        return
    command_line.watch_interrupts(server_args)
    for engine in [engine for engine in _engines if engine.has_ended()]:
        _engines.remove(engine)
        engine.close()
    engine = EngineProcesses()
    if server_args.nnodes > 1:
        engine.link = _meet_nodes(server_args)
    _engines.append(engine)
    setattr(server_args, _ATTRIBUTE, engine.path)


def _meet_nodes(server_args: Any) -> NodeLink:
    """The link to the launchers of the other nodes, whose end is that of this server."""
    with command_line.refusals_end(server_args, CANNOT):
        nodes = node_meeting.meet(server_args)
    node_meeting.name_server(server_args, nodes.server)
    link = NodeLink(nodes)
    interrupts.put_away_too(lambda: link.stop(interrupts.exit_code()))
    link.watch(lambda: os.kill(os.getpid(), signal.SIGQUIT), lambda: _stop(link))
    return link


def _stop(link: NodeLink) -> None:
    """On a thread: node 0 was stopped, and this node with it."""
    if _ends.setdefault("end", (mine := _End())) is not mine:
        return
    interrupts.end_descendants()
    socket_folder.remove_at_end()
    _exit_stopped(link.stopped or 0)


def _exit_stopped(code: int) -> NoReturn:
    os.write(2, b"The server has stopped: node 0 was stopped\n")
    os._exit(code)


def keep_schedulers(result: tuple[Any, Any], _engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """After it: those who have learned that are known to belong together."""
    _keep(server_args, result[1] or (), "sglang::scheduler")
    for engine in _engines:
        if engine.node and engine.path == getattr(server_args, _ATTRIBUTE, None):
            # SGLang watches its processes on node 0 only.
            threading.Thread(target=_watch_ranks, args=(engine,), daemon=True).start()


def _watch_ranks(engine: EngineProcesses) -> None:
    """On a thread of another node than 0: as `check_ranks`."""
    while engine in _engines and not _ends:
        time.sleep(_CHECK_SECONDS)
        engine.count_stopped()
        if engine in _engines and not _ends and engine.has_lost_ranks():
            os.kill(os.getpid(), signal.SIGQUIT)
            return


def keep_detokenizers(result: tuple[Any, Any], _engine_class: type, server_args: Any, *_: Any, **__: Any) -> None:
    """After `Engine._launch_detokenizer_subprocesses`: the others that the engine cannot do without."""
    _keep(server_args, result[0], "sglang::detokenizer")


def _keep(server_args: Any, processes: Sequence[Any], title: str) -> None:
    for engine in _engines:
        if engine.path == getattr(server_args, _ATTRIBUTE, None):
            engine.keep(processes, title)


def say_title(_result: None, server_args: Any, *_: Any, **__: Any) -> None:
    """After `configure_scheduler_process`: a rank that is killed has no title any more, and may be a child of another
    process than the launcher, which alone heeds interrupts."""
    path = getattr(server_args, _ATTRIBUTE, None)
    if path is not None:
        say(path, Started(title=title_of(os.getpid()), process=os.getpid()))
        interrupts.heed_none()


def report_exception() -> None:
    """Before `get_exception_traceback`, which SGLang also calls of exceptions that end nothing."""
    from sglang.srt.runtime_context import get_server_args

    error = sys.exception()
    if error is None or error.__traceback__ is None:
        return
    caught_by = error.__traceback__.tb_frame.f_code.co_name
    path = getattr(get_server_args(), _ATTRIBUTE, None)
    if path is not None and caught_by in _ENDED_BY_AN_EXCEPTION:
        title = "the launcher" if path.startswith(f"/proc/{os.getpid()}/") else title_of(os.getpid())
        say(path, Report(title, os.getpid(), _in_words(error), blames_peer(error)))


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_ERROR]


def check_ranks(original: Callable[[Any], bool], watchdog: Any) -> bool:
    """Around `SubprocessWatchdog._check_processes`, once a second: ranks that have stopped, or ended, end the server.

    SGLang looks at its own children only, and with data-parallel attention the ranks are children of a controller.
    """
    if _ends or any(process in _shut_down for process in watchdog._processes):
        return True
    engine = next((engine for engine in _engines if engine.is_watched_by(watchdog)), None)
    if engine is None:
        return original(watchdog)
    ended = original(watchdog)
    engine.count_stopped()
    findings = engine.findings()
    if findings and not ended:
        logger.error("A rank does not work any more: %s", "; ".join(finding.fault for finding in findings))
        os.kill(os.getpid(), signal.SIGQUIT)
    return ended or bool(findings)


def end_if_a_rank_dies(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Around `_wait_for_scheduler_ready`: a server of a command line ends by name, where SGLang raises."""
    from sglang.srt.runtime_context import get_server_args
    from sglang.srt.utils import kill_process_tree

    try:
        return original(*arguments, **keywords)
    except RuntimeError:
        if _engines and command_line.is_of_one(get_server_args()):
            kill_process_tree(os.getpid())
        raise


def end_as_told(_supervisor: Any) -> None:
    """As `Multiprocess.handle_quit`: with SIGQUIT the processes of an engine say that they fail.

    The supervisor of several processes for HTTP takes all signals of the launcher, and does nothing for those without
    such a method.
    """
    from sglang.srt.utils import kill_process_tree

    if _engines:
        kill_process_tree(os.getpid())


def end_by_name(
    original: Callable[..., None],
    parent_pid: int | None,
    include_parent: bool = True,
    *rest: Any,
    **keywords: Any,
) -> None:
    """Around `kill_process_tree`: where SGLang ends its own process too, that exits with code 1 and names the cause.

    Where it ends all children but not itself, an engine is shut down, which no rank is to blame for. Ranks that fail
    meanwhile, whatever their number, change neither.
    """
    if parent_pid not in (None, os.getpid()) or not (_engines or _ends):
        original(parent_pid, include_parent, *rest, **keywords)
        return
    mine = _End()
    end = _ends.setdefault("end", mine)
    if end is not mine:
        # A signal in the middle of it; or another thread, which must not go on as if nothing happened.
        if end.thread != mine.thread:
            end.over.wait()
        return
    try:
        with _signals_of_ranks_ignored():
            # On other nodes than 0 SGLang also ends like this when a rank is gone.
            lost = any(engine.has_lost_ranks() for engine in _engines)
            if (include_parent and parent_pid is not None) or lost:
                _end(lambda: original(parent_pid, False, *rest, **keywords))
            else:
                engines, _engines[:] = list(_engines), []
                for engine in engines:
                    _shut_down.update(engine.started)
                    if engine.link is not None and engine.node and engine.has_ended_well():
                        engine.link.leave()
                    elif engine.link is not None:
                        engine.link.stop(interrupts.exit_code())
                original(parent_pid, include_parent, *rest, **keywords)
                for engine in engines:
                    engine.close()
                socket_folder.remove()
    finally:
        del _ends["end"]
        mine.over.set()


@contextlib.contextmanager
def _signals_of_ranks_ignored() -> Iterator[None]:
    """Ranks that are ended see others end, and send SIGQUIT, which nobody handles when SGLang's server is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL if before is None else before)


def _end(end_children: Callable[[], None]) -> None:
    cause = _find_cause()
    try:
        end_children()
    finally:
        socket_folder.remove_at_end()
        # What was interrupted may be a print.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            sys.stdout.flush()
        if (code := _stopped()) is not None:
            _exit_stopped(code)
        os.write(2, f"The server ends: {cause}\n".encode())
        os._exit(CHECK_FAILED)


def _stopped() -> int | None:
    """The exit code of node 0, if that was stopped: ranks of this node may have noticed before its launcher."""
    codes = [engine.link.stopped for engine in _engines if engine.link is not None]
    return next((code for code in codes if code is not None), None)


def _find_cause() -> str:
    until = time.monotonic() + CAUSE_SECONDS
    while True:
        reports, findings = _accounts()
        silent = {_process_of(finding) for finding in findings} - {_process_of(report) for report in reports}
        known = bool(silent) or not all(report.blames_peer for report in reports) or _stopped() is not None
        if known or time.monotonic() > until:
            return root_cause(reports, findings or _accounts(stopped_checks=0)[1])
        time.sleep(_POLL_SECONDS)


def _accounts(*, stopped_checks: int = STOPPED_CHECKS) -> tuple[list[Report], list[Finding]]:
    """What is known of the processes of all engines, on all of their nodes."""
    accounts = [engine.account(stopped_checks=stopped_checks) for engine in _engines]
    return [report for each, _ in accounts for report in each], [finding for _, each in accounts for finding in each]


def _process_of(said: Report | Finding) -> tuple[int | None, int]:
    """Node and number of a process."""
    return said.node, said.process


def start_without_interrupts(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Around the methods of `Engine` that start processes, which are ended by their launcher only."""
    with interrupts.held():
        interrupts.hold_from_spawned()
        return original(*arguments, **keywords)


def warm_up_in_background(original: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Around `_wait_and_warmup`, the thread that SGLang waits for when its server ends.

    A server that is stopped before it is warm does not answer this thread any more, which asks it for two minutes.
    """
    if not _engines:
        original(*arguments, **keywords)
        return
    threading.Thread(target=original, args=arguments, kwargs=keywords, daemon=True).start()


def stop_without_traceback(original: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Around `_setup_and_run_http_server`: a server of a command line that was stopped by Ctrl-C has ended well.

    SGLang's HTTP server heeds the interrupt itself, and raises it again when it has ended.
    """
    interrupts.serve_from_now_on()
    try:
        original(*arguments, **keywords)
    except KeyboardInterrupt:
        if not interrupts.command():
            raise


def root_cause(reports: Sequence[Report], findings: Sequence[Finding]) -> str:
    """Who failed first, in words: a rank that was killed, else a process that raised what blames nobody, else a rank
    that is gone or stopped without a report.

    reports: in the order of their time, for each engine.
    """
    reported = {_process_of(report) for report in reports}
    silent = [finding for finding in findings if _process_of(finding) not in reported]
    killed = [_on_node(finding.node, finding.fault) for finding in silent if finding.killed]
    said = [
        _on_node(report.node, f"{report.title} (process {report.process}) raised {report.error}") for report in reports
    ]
    blaming_nobody = [words for report, words in zip(reports, said, strict=True) if not report.blames_peer]
    gone = [_on_node(finding.node, finding.fault) for finding in silent]
    return [*killed, *blaming_nobody, *gone, *said, "a process of it failed; the log says which one"][0]


def _on_node(node: int | None, what: str) -> str:
    return what if node is None else f"node {node}: {what}"
