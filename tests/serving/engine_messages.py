"""What the tests, the fork server and an engine process say to each other. Every message is msgpack."""

from typing import Any

import msgspec

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.serving.worker.live_state import RankState


class StartEngine(msgspec.Struct, tag=True, frozen=True):
    """Tests -> fork server, with one end of a socket: fork a process that builds `sglang.Engine(**arguments)`.

    `patches` are names of functions in tests/serving/patches.py, called in that process before SGLang's plugins are
    loaded. `environment` is set there too. The output of the process and its children goes to the file `log`.
    """

    arguments: dict[str, Any]
    environment: dict[str, str]
    patches: list[str]
    log: str


class Started(msgspec.Struct, tag=True, frozen=True):
    """Fork server -> tests: the engine's process, which leads a process group of its own."""

    pid: int


class Reap(msgspec.Struct, tag=True, frozen=True):
    """Tests -> fork server: wait for the end of an engine's process, at most `timeout` seconds."""

    pid: int
    timeout: float


class Exited(msgspec.Struct, tag=True, frozen=True):
    """Fork server -> tests: how the process ended (as `subprocess.Popen.returncode`), None if it has not."""

    returncode: int | None


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Engine -> tests: the engine answers requests from now on."""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Engine -> tests: building the engine raised this exception."""

    error: str


class Generate(msgspec.Struct, tag=True, frozen=True):
    """Tests -> engine: continue each prompt by `new_tokens` tokens, all prompts at once or one by one.

    sampling: other parameters than those of a greedy request.
    """

    prompts: list[list[int]]
    new_tokens: int
    together: bool
    sampling: dict[str, Any] = {}


class Continue(msgspec.Struct, tag=True, frozen=True):
    """Tests -> engine: continue each text greedily, all at once; `images` are data URLs, those of each text."""

    texts: list[str]
    images: list[list[str]]
    new_tokens: int


class Call(msgspec.Struct, tag=True, frozen=True):
    """Tests -> engine: call this method of `sglang.Engine`, which takes no arguments."""

    method: str


class Called(msgspec.Struct, tag=True, frozen=True):
    """Engine -> tests: the method has returned."""


class Inspect(msgspec.Struct, tag=True, frozen=True):
    """Tests -> engine: say what `/server_info` and `/metrics` of a server would."""


class Inspected(msgspec.Struct, tag=True, frozen=True):
    """Engine -> tests: our part of each scheduler's internal state, and the text of the Prometheus endpoint."""

    states: list[list[RankState]]
    metrics: str


class Generated(msgspec.Struct, tag=True, frozen=True):
    """Engine -> tests: the answers in the order of the prompts, and how many prompt tokens the prefix cache gave.

    accepted: how many tokens a step of each request gave; 1 without drafts.
    """

    answers: list[Answer]
    cached_tokens: list[int]
    accepted: list[float]
