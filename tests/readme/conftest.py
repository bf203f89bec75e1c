"""One reader for all pages."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.source_tree import ROOT
from tests.readme.extraction import documented, scenes
from tests.readme.reader import Reader


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    steps = documented(ROOT)
    with tempfile.TemporaryDirectory(prefix="reader-") as folder:
        yield Reader(Path(folder), steps, scenes(steps))
