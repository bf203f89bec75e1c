"""Temporary folders that go with the processes that own them: what was left by killed ones, the next one removes.

A folder is locked by every process that holds its descriptor; the kernel gives the lock up when the last of them ends.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "sglang-"
"""Short, because names of sockets begin with that of the folder, and may have 107 characters."""
_UNLOCKED = ".sglang-"

# Descriptors of the folders of this process, and of those it was forked from.
_descriptors: dict[Path, int] = {}


def make() -> Path:
    """A new folder in the temporary directory, of this process and of those that are forked from it."""
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_UNLOCKED))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Only now has it a name by which others look for abandoned ones.
    named = folder.rename(folder.with_name(PREFIX + folder.name.removeprefix(_UNLOCKED)))
    _descriptors[named] = descriptor
    return named


def descriptor_of(folder: Path) -> int:
    """For a process that is started to own the folder as well (`pass_fds`)."""
    return _descriptors[folder]


def remove(folder: Path) -> None:
    """Remove a folder that was made here."""
    shutil.rmtree(folder, ignore_errors=True)
    if (descriptor := _descriptors.pop(folder, None)) is not None:
        os.close(descriptor)


def remove_abandoned() -> None:
    """Remove folders of this user whose processes have all ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
