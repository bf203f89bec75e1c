"""Files that a command writes, looked at before it begins."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import msgspec

from sglang_ascend_moe.errors import InvalidInput

PLOT_SUFFIXES = (".svg", ".png", ".pdf")


def problem_with_file(path: Path) -> str | None:
    """Why `path` cannot be written, as far as it can be told before."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path.parent, os.W_OK):
        return f"the folder {path.parent.absolute()} cannot be written"
    return "is no file that could be replaced" if path.exists() and not path.is_file() else None


def require_file(flag: str, path: Path | None) -> None:
    """Raises `InvalidInput`, naming the flag, for a file that cannot be written; None: there is none to write."""
    if path is not None and (problem := problem_with_file(path)):
        raise InvalidInput(f"{flag} {path}: {problem}; give a file in a folder that can be written")


def write_json(path: Path, content: object) -> None:
    """Writes what msgspec can encode, for people too."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


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
