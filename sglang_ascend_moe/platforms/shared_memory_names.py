"""SGLang's names in /dev/shm, taken away as soon as nobody needs them.

SGLang ends its processes with SIGKILL, so that no code of theirs removes what they named there. Memory stays usable
without a name for those who have mapped it, and goes with the last of them. Each function is a row of the table.
"""

import contextlib
import os
from typing import Any


def unname_queue(queue: Any, *_: Any, **__: Any) -> None:
    """After `MessageQueue.create_from_process_group`, which returns when every reader has mapped the queue."""
    buffer = queue.buffer
    if buffer is not None and buffer.is_creator:
        buffer.shared_memory.unlink()
        # Whoever believes to be the creator unlinks again at the end.
        buffer.is_creator = False


def map_load_reports(_result: None, controller: Any, *_: Any, **__: Any) -> None:
    """After `DataParallelController.__init__`, when its schedulers have made the file of their load reports."""
    controller.load_snapshot_reader._attach()


def unname_load_reports(_result: None, tokenizer_manager: Any, *_: Any, **__: Any) -> None:
    """After `Engine._set_startup_time`, the last step of a launch: all who read load reports map them now, then the
    name goes. With several tokenizer workers, which start later, it stays."""
    reader = getattr(tokenizer_manager, "load_snapshot_reader", None)
    if reader is not None and hasattr(tokenizer_manager, "generate_request") and reader._attach():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(reader.path)


def share_no_progress_bars(*_: Any, **__: Any) -> None:
    """Before `configure_scheduler_process`: tqdm would make a named semaphore to share bars between processes."""
    from tqdm.std import TqdmDefaultWriteLock

    if not hasattr(TqdmDefaultWriteLock, "mp_lock"):
        TqdmDefaultWriteLock.mp_lock = None
