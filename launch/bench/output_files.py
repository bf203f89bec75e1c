"""Files and folders that a command writes into, looked at before it begins."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

PLOT_SUFFIXES = (".svg", ".png", ".pdf")


def problem_with_file(path: Path) -> str | None:
    """Why `path` cannot be written, as far as it can be told before."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path.parent, os.W_OK):
        return f"the folder {path.parent.absolute()} cannot be written"
    return "is no file that could be replaced" if path.exists() and not path.is_file() else None


def problem_with_folder(path: Path) -> str | None:
    """Makes the folder `path` if it is not there; why no file can be made in it, in the system's words."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        return error.strerror
    return None


def plot_path(text: str) -> Path:
    """The type of `--plot`."""
    path = Path(text)
    if path.suffix not in PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PLOT_SUFFIXES)}")
    return path


def can_plot(command: str = "bench") -> bool:
    """Whether plots can be made here; `command` says so if not."""
    if importlib.util.find_spec("matplotlib") is not None:
        return True
    print(
        f"ascend-moe {command}: --plot and page need matplotlib: pip install 'sglang-ascend-moe[bench]'",
        file=sys.stderr,
    )
    return False
