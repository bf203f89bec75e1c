"""An environment with another release of SGLang than the lock's: `python -m tests.versions.environment 0.5.22`.

It lies in `.venv/sglang-0.5.22`, and has what the lock has but for what that release wants otherwise, and this working
copy of the package.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.packaging.source_tree import ROOT

_UV = Path(sys.executable).parent / "uv"
_MADE = "made"
OF_CUDA = ("cuda-tile",)
"""Packages that only CUDA needs, and that the release wants in a version that PyPI has no wheel of."""


def python_with(version: str) -> Path:
    """The interpreter of the environment with SGLang `version`, made if it is not there or the lock has changed.

    Raises `subprocess.CalledProcessError`, after uv has said why, if it cannot be made.
    """
    folder = ROOT / f".venv/sglang-{version}"
    python, made, pins = folder / "bin/python", folder / _MADE, folder / "requirements.txt"
    lock = (ROOT / "requirements.lock").read_text()
    if made.is_file() and made.read_text() == lock:
        return python
    # With pip, which tests download wheels with.
    _run("venv", "--quiet", "--clear", "--seed", "--python", sys.executable, folder)
    # uv keeps the pins of the file that it writes where they fit.
    pins.write_text(lock)
    # The release too: it may be one that the package does not ask for.
    (overrides := folder / "overrides.txt").write_text("\n".join([*OF_CUDA, f"sglang=={version}"]))
    asked = ("--python", python, "--overrides", overrides, "--extra", "dev", "pyproject.toml", "-")
    _run("pip", "compile", "--quiet", "--output-file", pins, *asked, read=f"sglang=={version}")
    _run("pip", "sync", "--quiet", "--python", python, pins)
    _run("pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    made.write_text(lock)
    return python


def _run(*arguments: str | Path, read: str = "") -> None:
    subprocess.run([_UV, *arguments], input=read, text=True, check=True, cwd=ROOT)


def environment() -> dict[str, str]:
    """The variables of processes in it: Python keeps what it compiles, or each would compile SGLang anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    print(python_with(sys.argv[1]))
