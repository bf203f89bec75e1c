"""examples/ is what its page says, each file short, runnable, and no stand-in for a module that others import."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.main import COMMANDS
from tests.packaging.source_tree import ROOT

FOLDER = ROOT / "examples"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in {".py", ".sh"})
MOST_LINES = 90
WITHOUT_EXAMPLE = {
    "demo": "is one by itself",
    "adopt": "has a page of recipes",
    "build-kernels": "needs CANN",
    "top": "shows any server",
    "trace": "shows what any server left",
    "monitoring": "writes files for Prometheus and Grafana",
}


def page() -> str:
    return (FOLDER / "README.md").read_text()


def test_the_page_lists_every_file():
    assert sorted(re.findall(r"examples/(\w+\.(?:py|sh))", page())) == [path.name for path in FILES]


def test_every_file_is_named_by_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [path.name for path in FILES if f'"{path.name}"' not in tests] == []


def test_every_command_has_an_example():
    shown = set(re.findall(r"`ascend-moe (\S+)`:", page()))
    assert shown == set(COMMANDS) - set(WITHOUT_EXAMPLE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_short_and_begins_with_what_it_shows(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    if path.suffix == ".sh":
        assert re.match(r"#!/usr/bin/env bash\n# \w", text)
        assert os.access(path, os.X_OK)
    else:
        assert text.startswith('"""')


def test_no_file_takes_the_name_of_a_module():
    """A program's folder comes first in its path: SGLang would import `deep_ep` from a file of that name."""
    names = [path.stem for path in FILES if path.suffix == ".py"]
    assert [name for name in names if importlib.util.find_spec(name)] == []
