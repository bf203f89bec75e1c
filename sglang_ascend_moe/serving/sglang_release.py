"""Which release of SGLang is installed, found without importing it, and which were tested."""

from importlib.metadata import version

from packaging.version import Version

TESTED = ("0.5.22", "0.5.23")
"""Releases that tests have served on hosts; on emulated NPUs the last one."""
DRAFTED = "0.5.23"
"""The first one whose drafts are served."""


def installed() -> str:
    """The installed release."""
    return version("sglang")


def reaches(first: str, release: str | None = None) -> bool:
    """Whether `release`, or else the installed one, is `first` or later; True if `first` is empty."""
    return not first or Version(release or installed()) >= Version(first)
