"""What SGLang names in /dev/shm, without the names: hooks of `host_hooks`.

SGLang ends its processes with SIGKILL, at any moment, so that no code of theirs removes what they named there. Memory
without a name goes with the last process that has mapped it. This module stands in for `multiprocessing.shared_memory`
in SGLang's `shm_broadcast` (message queues) and `parallel_state` (which ranks are on one machine).
"""

import mmap
import os
from collections.abc import Callable
from typing import Any


class SharedMemory:
    """What SGLang uses of `multiprocessing.shared_memory.SharedMemory`.

    Its `name` says in which process, and by which descriptor, the memory is found. The creator's descriptor stays open
    until `unlink`, so a reader can open it as long as the creator lives and has not unlinked it; who has mapped it
    keeps it.

    Raises:
        FileNotFoundError: nobody of this machine and network has memory of that `name`; for SGLang, it is on another
            machine.
    """

    def __init__(self, name: str, create: bool = False, size: int = 0) -> None:
        if create:
            self._descriptor = os.memfd_create(name)
            os.ftruncate(self._descriptor, size)
            self.name = f"{os.getpid()}.{self._descriptor}.{name}"
            self.size = size
            self._map = mmap.mmap(self._descriptor, size)
        else:
            descriptor = _open(name)
            self.name = name
            self.size = os.fstat(descriptor).st_size
            self._map = mmap.mmap(descriptor, self.size)
            os.close(descriptor)
        self.buf = memoryview(self._map)

    def close(self) -> None:
        """Unmap the memory here."""
        self.buf.release()
        self._map.close()

    def unlink(self) -> None:
        """No further reader opens the memory; for its creator."""
        os.close(self._descriptor)


def _open(name: str) -> int:
    process, descriptor, given = name.split(".", 2)
    path = f"/proc/{process}/fd/{descriptor}"
    # On another machine the same numbers may stand for anything, also for a process of another user.
    try:
        # SGLang takes whom it shares memory with for somebody on its own loopback interface.
        reachable = os.readlink(f"/proc/{process}/ns/net") == os.readlink("/proc/self/ns/net")
        if reachable and os.readlink(path) == f"/memfd:{given} (deleted)":
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise FileNotFoundError(f"{path} cannot be the memory {given} ({error})") from error
    raise FileNotFoundError(f"{path} is not the memory {given}")


def make_load_reports(
    _engine_class: type,
    server_args: Any,  # noqa: ARG001
    port_args: Any,
    *_: Any,
    **__: Any,
) -> None:
    """Before `Engine._launch_scheduler_processes`: memory for the load reports that never has a name.

    Every process of a server knows its `instance_id`, from which SGLang makes the name. Here it says in which process
    and by which descriptor the memory is found; the descriptor stays open as long as the launcher lives.
    """
    port_args.instance_id = f"{os.getpid()}.{os.memfd_create('load reports')}"


def load_report_path(original: Callable[[str], str], ipc_name: str) -> str:
    """Around `shm_path_for`: the path of the load reports of the instance `ipc_name`."""
    process, _, descriptor = ipc_name.partition(".")
    return f"/proc/{process}/fd/{descriptor}" if descriptor else original(ipc_name)


def share_no_progress_bars(*_: Any, **__: Any) -> None:
    """Before `configure_scheduler_process`: tqdm would make a named semaphore to share bars between processes."""
    from tqdm.std import TqdmDefaultWriteLock

    if not hasattr(TqdmDefaultWriteLock, "mp_lock"):
        TqdmDefaultWriteLock.mp_lock = None
