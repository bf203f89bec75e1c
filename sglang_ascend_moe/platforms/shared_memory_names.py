"""SGLang's names in /dev/shm, taken away as soon as nobody needs them.

SGLang ends its processes with SIGKILL, so that no code of theirs removes what they named there. Memory stays usable
without a name for those who have mapped it, and goes with the last of them. Each function is a row of the table.
"""

import os
from collections.abc import Callable
from typing import Any


def unname_queue(queue: Any, *_: Any, **__: Any) -> None:
    """After `MessageQueue.create_from_process_group`, which returns when every reader has mapped the queue."""
    buffer = queue.buffer
    if buffer is not None and buffer.is_creator:
        buffer.shared_memory.unlink()
        # Whoever believes to be the creator unlinks again at the end.
        buffer.is_creator = False


def make_load_reports(_engine_class: type, _server_args: Any, port_args: Any, *_: Any, **__: Any) -> None:
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
