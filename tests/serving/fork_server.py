"""A process that imports SGLang once and forks an engine from itself for every request.

Importing SGLang takes most of an engine's start-up, and with process spawning every scheduler imports it again. Here
one import serves the whole test session: the engine's process is forked from this one, and its schedulers are forked
from it in turn. Forking needs a parent with a single thread, which is why this is not the test process itself.

Started by `tests.serving.engines.ForkServer`; ends when the other end of its socket is closed.
"""

import importlib
import os
import select
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection

import msgspec

from tests.serving.engine_messages import Exited, Reap, Started, StartEngine

MESSAGE_BYTES = 1 << 16


def serve(control: socket.socket) -> None:
    """Answer requests on `control` (SOCK_SEQPACKET) until its peer closes it."""
    import_sglang()
    control.send(b"imported")
    while True:
        payload, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
        if not payload:
            return
        match msgspec.msgpack.decode(payload, type=StartEngine | Reap):
            case StartEngine() as request:
                pid = fork_engine(request, descriptors[0], control)
                os.close(descriptors[0])
                control.send(msgspec.msgpack.encode(Started(pid)))
            case Reap(pid, timeout):
                control.send(msgspec.msgpack.encode(Exited(reap(pid, timeout))))


def import_sglang() -> None:
    """Import what an engine and its schedulers need, without loading plugins: each engine does that for itself."""
    for name in ("entrypoints.engine", "managers.scheduler", "models.registry"):
        importlib.import_module(f"sglang.srt.{name}")

    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise RuntimeError(f"importing SGLang left {len(threads)} threads; forking is only safe with one")


def fork_engine(request: StartEngine, channel: int, control: socket.socket) -> int:
    """Fork the engine's process, which talks over the descriptor `channel`; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        control.close()
        log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        os.close(log)
        from tests.serving.engine_process import run_engine

        run_engine(request, Connection(channel))
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may escape into the copied stack of the fork server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def reap(pid: int, timeout: float) -> int | None:
    """Wait at most `timeout` seconds for the end of child `pid`; its return code, or None if it still runs."""
    process = os.pidfd_open(pid)
    try:
        if not select.select([process], [], [], timeout)[0]:
            return None
    finally:
        os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
