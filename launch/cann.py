"""Where CANN is on this machine, which version it is, and what of it is there.

Places and names are those of CANN's own `set_env.sh`, of its installer and of public projects that build with it. No
machine with CANN was tried.
"""

import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

UNKNOWN = "of unknown version"
_PLACES = ("cann", "ascend-toolkit/latest")


class Cann(NamedTuple):
    """An installation: `home` is what `ASCEND_HOME_PATH` should be."""

    home: Path
    version: str

    def is_older_than(self, major: int, minor: int) -> bool:
        """False where the version is not known."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is not None and (int(found[1]), int(found[2])) < (major, minor)


def places(root: Path = Path("/")) -> list[Path]:
    """Where CANN is looked for: where its `set_env.sh` says, then where its installer puts it under `root`."""
    named = [Path(os.environ[name]) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if os.environ.get(name)]
    installed = [base / "Ascend" / place for base in (root / "usr/local", Path.home()) for place in _PLACES]
    return named + installed


def find_cann(root: Path = Path("/")) -> Cann | None:
    """The first place that exists; None if there is none."""
    home = next((place for place in places(root) if place.is_dir()), None)
    return None if home is None else Cann(home, _version_of(home))


def machine_folder(home: Path) -> Path:
    """What CANN holds for the processor of this machine."""
    return home / f"{platform.machine()}-linux"


def first_file(home: Path, *candidates: str) -> Path | None:
    """The first of these files in CANN or in its folder for this machine; None if there is none."""
    for candidate in candidates:
        for folder in (home, machine_folder(home)):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def _version_of(home: Path) -> str:
    written = (
        (machine_folder(home) / "ascend_toolkit_install.info", r"^version=(.+)$"),
        (home / "version.cfg", r"(\d+\.\d+[\w.]*)"),
        (home / "version.info", r"^version=(.+)$"),
        (home / "opp/version.info", r"^version=(.+)$"),
    )
    for path, pattern in written:
        try:
            found = re.search(pattern, path.read_text(), flags=re.MULTILINE | re.IGNORECASE)
        except OSError:
            continue
        if found:
            return found[1].strip()
    return UNKNOWN
