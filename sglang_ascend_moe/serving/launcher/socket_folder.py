"""The sockets between the processes of a server are in a folder that goes with the server.

SGLang names them in the temporary directory and removes none of them. A name in the abstract namespace would need no
removal, but anyone on the machine could connect.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from sglang_ascend_moe.serving import owned_folder
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.options import options_of

# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_sockets"
_SCHEME = "ipc://"

# The folders of this process's engines, which end together.
_folders: list[str] = []
os.register_at_fork(after_in_child=_folders.clear)


def move_names(port_args: Any, server_args: Any, *_: Any, **__: Any) -> None:
    """After `PortArgs.init_new`, in the launcher and in a controller of data parallelism: names of files of SGLang's
    move into the folder, which the launcher makes."""
    if options_of(server_args) is None:
        return
    folder = getattr(server_args, _ATTRIBUTE, None)
    # Arguments may serve for another engine when the first has ended.
    if folder is None or not os.path.isdir(folder):
        folder = _make()
        setattr(server_args, _ATTRIBUTE, folder)
    for field, name in list(vars(port_args).items()):
        if isinstance(name, str) and name.startswith(_SCHEME):
            path = Path(name.removeprefix(_SCHEME))
            if path.is_file():
                setattr(port_args, field, f"{_SCHEME}{path.rename(Path(folder, path.name))}")


def _make() -> str:
    if not _folders:
        atexit.register(remove)
        interrupts.put_away_too(remove_at_end)
    _folders.append(str(owned_folder.make()))
    return _folders[-1]


def remove() -> None:
    """Remove the folders, when the processes of the engines have ended."""
    while _folders:
        owned_folder.remove(Path(_folders.pop()))
    atexit.unregister(remove)


def remove_at_end() -> None:
    """Before this process ends at once: also what goes where Python ends as usual, the folder of SGLang's metrics and
    the arguments of processes for HTTP."""
    remove()
    Path(f"/dev/shm/multi_tokenizer_args_{os.getpid()}").unlink(missing_ok=True)
    metrics = getattr(sys.modules.get("sglang.srt.utils.common"), "prometheus_multiproc_dir", None)
    if metrics is not None:
        metrics.cleanup()
