"""Folders that something writes into, looked at before it begins."""

import tempfile
from pathlib import Path

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.options import FLAGS, Options

_FOLDERS = ("post_mortem", "trace")


def refuse_unwritable_folders(options: Options) -> None:
    """Raise `InvalidInput` for a folder of this node's ranks that cannot be written; makes those that are missing."""
    for name in _FOLDERS:
        folder = getattr(options, name)
        if folder is not None and (problem := problem_with_folder(Path(folder))):
            raise InvalidInput(f"{FLAGS[name].flag} {folder}: {problem}; give a folder that can be written")


def problem_with_folder(path: Path) -> str | None:
    """Makes the folder `path` if it is not there; why no file can be made in it, in the system's words."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        return error.strerror
    return None
