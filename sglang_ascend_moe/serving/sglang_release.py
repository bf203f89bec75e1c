"""Which release of SGLang is installed, found without importing it, and which were tested."""

from importlib.metadata import version

from packaging.version import Version

TESTED = ("0.5.21", "0.5.22", "0.5.23")
"""Releases that tests have served on hosts."""
TESTED_ON_NPUS = ("0.5.18", "0.5.23")
"""Releases that tests have served on emulated NPUs; SGLang's Ascend images have the first."""
DRAFTED = "0.5.23"
"""The first one whose drafts are served."""
_UNKNOWN = Version("0.0.0")
"""What SGLang is called that is built from sources without their history (0.0.0.dev0): taken for the newest."""


def installed() -> str:
    """The installed release."""
    return version("sglang")


def reaches(first: str, release: str | None = None) -> bool:
    """Whether `release`, or else the installed one, is `first` or later; True if `first` is empty.

    What leads to a release, as its candidates and what is built from a clone, is taken for that release.
    """
    if not first:
        return True
    found = Version(release or installed())
    base = Version(found.base_version)
    return base == _UNKNOWN or max(found, base) >= Version(first)
