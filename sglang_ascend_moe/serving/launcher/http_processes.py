"""Servers with several processes for HTTP (`--tokenizer-worker-num`): each is as the only one of other servers.

SGLang's launcher starts them by the name of a module that has the app, and a supervisor of uvicorn looks after them.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

from sglang_ascend_moe.serving.launcher.socket_folder import move_names
from sglang_ascend_moe.serving.options import options_of

VARIABLE = "SGLANG_HTTP_SERVER_APP_PATH"
APP = "sglang_ascend_moe.serving.launcher.http_app:app"

# Whether the processes of this launcher are ours.
_named = False
# What is kept on a process of the supervisor: whether it was asked, and has answered.
_ASKED = "ascend_moe_asked"
_HEARD = "ascend_moe_heard"


def name_app(server_args: Any, *_: Any, **__: Any) -> None:
    """Before `_setup_and_run_http_server`: the processes import SGLang's app from a module that loads plugins."""
    global _named
    if options_of(server_args) is not None:
        os.environ[VARIABLE] = APP
        _named = True


def move_own_name(_worker: Any, server_args: Any, port_args: Any) -> None:
    """Before `TokenizerWorker.__init__`: the name of this process's socket moves into the folder of the server."""
    move_names(port_args, server_args)


def wait_for_start(original: Callable[..., bool], process: Any, *arguments: Any, **keywords: Any) -> bool:
    """Around `Process.is_alive`, which asks a process and kills it if it does not answer: while it imports SGLang, it
    cannot, and the supervisor has signals to heed meanwhile."""
    if not _named or getattr(process, _HEARD, False):
        return original(process, *arguments, **keywords)
    # One that has ended already closes the pipe.
    with contextlib.suppress(OSError, EOFError):
        if not getattr(process, _ASKED, False):
            process.parent_conn.send(b"ping")
            setattr(process, _ASKED, True)
        if process.parent_conn.poll():
            process.parent_conn.recv()
            setattr(process, _HEARD, True)
    return bool(process.process.is_alive())
