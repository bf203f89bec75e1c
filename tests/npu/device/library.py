"""The native library of the emulated NPU in this process."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

NAME = "emulated_npu_device"


def load(path: Path) -> ModuleType:
    """Loads what `build` has made."""
    import torch  # noqa: F401 - whose libraries it needs

    loader = ExtensionFileLoader(NAME, str(path))
    specification = importlib.util.spec_from_loader(NAME, loader)
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    sys.modules[NAME] = module
    return module


def native() -> ModuleType:
    """The library that was loaded. Raises KeyError if none was."""
    return sys.modules[NAME]
