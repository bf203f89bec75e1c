"""Servers that are forked from this process, which imports SGLang once for all of them.

Importing takes most of the start of a server on a host, 20 seconds of a core and over a gigabyte. Forking needs a
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

MODULES = ("sglang.launch_server", "sglang.srt.entrypoints.http_server", "sglang.srt.managers.scheduler")


# numpy starts a thread per core otherwise; SGLang calls nothing that would use them.
NUMPY_THREADS = "OPENBLAS_NUM_THREADS"


def threads() -> int:
    """Threads of this process."""
    return psutil.Process().num_threads()


def start_again_without_threads(arguments: list[str]) -> None:
    """Run `ascend-moe` with `arguments` in place of this program, in an environment in which numpy starts no thread."""
    command = [sys.executable, "-m", "sglang_ascend_moe.launch.main", *arguments]
    interrupts.hold_until_watched()
    os.execve(sys.executable, command, {**os.environ, NUMPY_THREADS: "1"})


def import_sglang() -> None:
    """Import what a server and its ranks need. Raises `ServerFailed` if this process cannot fork afterwards."""
    with warnings.catch_warnings():
        # Of accelerators that are not there.
        warnings.simplefilter("ignore")
        for name in MODULES:
            importlib.import_module(name)
    if threads() != 1:
        raise ServerFailed(f"importing SGLang left {threads()} threads; forking is safe with one only")


class ForkedServer(ServerProcess):
    """A `ServerProcess` that is forked from this process, after `import_sglang`."""

    def start(self) -> None:
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
