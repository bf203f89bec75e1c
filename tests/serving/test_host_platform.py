"""Which machines SGLang serves on without an accelerator, and what it does not import there."""

import importlib
import importlib.util
import sys

import pytest

from sglang_ascend_moe.serving import host_platform
from sglang_ascend_moe.serving.host_platform import HOST_PLATFORM, ONLY_FOR_ACCELERATORS, activate


@pytest.fixture(autouse=True)
def _nothing_imported(monkeypatch: pytest.MonkeyPatch):
    for name in ONLY_FOR_ACCELERATORS:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("name", ONLY_FOR_ACCELERATORS)
def test_packages_for_accelerators_are_as_if_they_were_not_installed(name: str):
    assert importlib.util.find_spec(name) is not None
    assert activate() == HOST_PLATFORM
    assert importlib.util.find_spec(name) is None
    with pytest.raises(ImportError):
        importlib.import_module(name)


def test_a_machine_that_must_not_use_the_platform_keeps_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_platform, "obstacle", lambda: "an accelerator")
    assert activate() is None
    assert sys.modules.keys().isdisjoint(ONLY_FOR_ACCELERATORS)
