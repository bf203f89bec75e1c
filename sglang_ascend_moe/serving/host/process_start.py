"""How a server on a host starts its processes: forked from the launcher, which has imported SGLang already.

SGLang spawns them, because a process that uses an accelerator cannot be forked. Every one then imports SGLang again,
which takes 10 seconds of a core and over a gigabyte each. Functions without underscore are hooks of
`host_hooks`.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from sglang_ascend_moe.serving.launcher import interrupts

_LISTED_SECONDS = 1.0


def launch_by_forking(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Around the methods of `Engine` that start processes: those are forked, unless threads make that unsafe.

    An interrupt waits until all are started, because Python loses one that comes while it forks; and the processes heed
    none, because their launcher ends them.
    """
    chosen = multiprocessing.get_start_method()
    with interrupts.held():
        try:
            if _can_fork():
                multiprocessing.set_start_method("fork", force=True)
            else:
                interrupts.hold_from_spawned()
            return original(*arguments, **keywords)
        finally:
            multiprocessing.set_start_method(chosen, force=True)


def spawn_processes(*_: Any, **__: Any) -> None:
    """Before the controller of data parallelism starts schedulers, which it does from threads: SGLang's own choice."""
    multiprocessing.set_start_method("spawn", force=True)


def _can_fork() -> bool:
    """Whether no thread of this process would be missing in a child.

    Pools that provide for a fork, OpenBLAS's, end their threads before one. Hence a trial.
    """
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    # A thread that has ended is listed a little longer.
    until = time.monotonic() + _LISTED_SECONDS
    while psutil.Process().num_threads() > 1:
        if threading.active_count() > 1 or time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
