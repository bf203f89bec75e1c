"""What becomes of every command that README.md and docs/ tell people to type."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from tests.readme.extraction import Snippet, Step, has_ranks


class Way(Enum):
    RUN = "run as it stands"
    NIGHTLY = "run as it stands by `make test-nightly`"
    ELSEWHERE = "not run here; `by` does it"


class Row(NamedTuple):
    """Of commands that `pattern` matches as a whole. by: a file of the repository."""

    pattern: str
    way: Way
    reason: str
    by: str = ""


ROWS = (
    Row("make test", Way.ELSEWHERE, "it is what runs this test", ".ci/run"),
    Row("make (venv|system-packages)|source .venv/bin/activate|pip install -e .*", Way.ELSEWHERE,
        "`make test` prepares the environment in which this test runs", "Makefile"),
    Row("make demo", Way.ELSEWHERE, "it is `ascend-moe demo`, which that test runs", "tests/launch/test_demo.py"),
    Row("make wheel", Way.ELSEWHERE, "the same wheel is built in a copy", "tests/packaging/test_wheel.py"),
    Row("ascend-moe disagg up --model-path MODEL --tp-size 2", Way.NIGHTLY,
        "four ranks; README's has two, and tests/launch/disagg serves with four"),
    Row("ascend-moe (serve|disagg up|disagg check) .*", Way.RUN, "servers, and what asks them"),
    Row(r"python -m sglang\.launch_server .*", Way.NIGHTLY,
        "`sglang serve` runs the same; tests/serving/test_one_server.py serves with it"),
    Row("sglang serve .*", Way.NIGHTLY, "`ascend-moe serve` runs the same"),
    Row("curl http://127.0.0.1:.*", Way.RUN, "asks a server"),
    Row("ascend-moe doctor --.*", Way.NIGHTLY, "half a minute of imports each; the short suite runs it without flags"),
    Row("ascend-moe (doctor|(plan|adopt) .*)", Way.RUN, "half a minute at most"),
    Row("ascend-moe bench (exchange --preset quick|report)( .*)?", Way.RUN, "half a minute at most"),
    Row(r"python -m sglang_ascend_moe\.launch\.tiny_model .*", Way.RUN, "seconds"),
    Row("torchrun .* examples/deep_ep_buffer.py", Way.ELSEWHERE, "that test reads what it prints too",
        "tests/examples/test_without_servers.py"),
    Row("torchrun .*", Way.RUN, "seconds"),
)  # fmt: skip
"""The first row that matches decides; a command that none matches fails the test."""

SNIPPET = Row("", Way.RUN, "a block of Python")
ENGINE = Row("", Way.NIGHTLY, "a block of Python that starts ranks; the tests of serving start engines")


def row_of(step: Step) -> Row | None:
    """The row of a command or snippet, None if there is none."""
    if isinstance(step, Snippet):
        return ENGINE if has_ranks(step) else SNIPPET
    return next((row for row in ROWS if re.fullmatch(row.pattern, step.text)), None)
