"""Every server that README.md and the first sections of docs/ start answers, as do the commands that ask it, and ends
with exit code 0 after Ctrl-C, leaving nothing behind. So does every engine.
"""

import pytest

from tests.packaging.source_tree import ROOT
from tests.readme.extraction import Scene, Snippet, documented, has_ranks, scenes
from tests.readme.reader import Reader
from tests.readme.table import Way, row_of

pytestmark = pytest.mark.timeout(900)

STEPS = documented(ROOT)
ENGINES = [step for step in STEPS if isinstance(step, Snippet) and has_ranks(step)]


def params() -> list:
    found = []
    for scene in scenes(STEPS):
        nightly = any(row_of(server) is not None and row_of(server).way is Way.NIGHTLY for server in scene.servers)
        marks = [pytest.mark.nightly] if nightly else []
        found.append(pytest.param(scene, id=" and ".join(server.text for server in scene.servers), marks=marks))
    return found


@pytest.mark.parametrize("scene", params())
def test_a_server_answers_and_ends_well(reader: Reader, scene: Scene):
    reader.play(scene)


@pytest.mark.nightly
@pytest.mark.parametrize("snippet", [pytest.param(snippet, id=snippet.page) for snippet in ENGINES])
def test_an_engine_answers_and_ends_well(reader: Reader, snippet: Snippet):
    reader.do(snippet)
