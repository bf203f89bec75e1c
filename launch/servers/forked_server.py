"""Servers that are forked from this process, which imports SGLang once for all of them.

Importing takes much of the start of a server on a host, 10 seconds of a core and over a gigabyte. Forking needs a
process with a single thread, and one that has not loaded SGLang's plugins: each server does that for itself.
"""

import importlib
import os
import sys
import tempfile
import traceback
import warnings

import psutil

from sglang_ascend_moe.launch.servers.server_process import ServerFailed, ServerProcess, end_with_parent
from sglang_ascend_moe.launch.servers.sglang_server import serve
from sglang_ascend_moe.serving import owned_folder
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED

MODULES = (
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
)

_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""numpy and tokenizers start a thread per core otherwise."""
_environment: dict[str, str] = {}
"""Of this process, before it was changed."""


def prepare_to_fork() -> None:
    """Before anything imports numpy: libraries start no threads in this process."""
    _environment.update(os.environ.copy())
    os.environ.update(_WITHOUT_THREADS)


def allow_threads() -> None:
    """In a server: its environment is that before `prepare_to_fork`."""
    for name in _WITHOUT_THREADS:
        os.environ[name] = _environment.get(name, "")
        if name not in _environment:
            del os.environ[name]


def import_sglang() -> None:
    """Import what a server and its ranks need, after `prepare_to_fork`.

    Raises `ServerFailed` if this process cannot fork afterwards.
    """
    with warnings.catch_warnings():
        # Of accelerators that are not there.
        warnings.simplefilter("ignore")
        for name in MODULES:
            importlib.import_module(name)
    require_one_thread()


def require_one_thread() -> None:
    """Raises `ServerFailed` if there are threads, which would be missing in a process that is forked."""
    if (threads := psutil.Process().num_threads()) != 1:
        raise ServerFailed(f"importing SGLang left {threads} threads; forking is safe with one only")


class ForkedServer(ServerProcess):
    """A `ServerProcess` that is forked from this process, after `import_sglang`."""

    def start(self) -> None:
        """Raises `ServerFailed` if this process cannot fork."""
        require_one_thread()
        sys.stdout.flush()
        sys.stderr.flush()
        # Here, because the log is looked at when the server ends, however soon.
        self.log.write_bytes(b"")
        self.make_temporary()
        pid = os.fork()
        if pid == 0:
            self._serve_and_exit()
        self._process = psutil.Process(pid)

    def _serve_and_exit(self) -> None:
        status = CHECK_FAILED
        try:
            os.setsid()
            self._redirect()
            interrupts.watch("the server", self._remove_temporary)
            end_with_parent()
            os.environ.update(self.environment)
            allow_threads()
            tempfile.tempdir = None
            status = serve(self._arguments)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except KeyboardInterrupt:
            status = interrupts.told()
        except BaseException:  # noqa: BLE001 - nothing may escape into the copied stack of the parent
            traceback.print_exc()
        finally:
            self._remove_temporary()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _remove_temporary(self) -> None:
        """Here as well, in case the parent was killed."""
        owned_folder.remove(self.temporary)

    def _redirect(self) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
