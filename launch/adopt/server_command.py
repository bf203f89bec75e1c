"""The commands that start a server of SGLang, among other commands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

from sglang_ascend_moe.launch.adopt.shell_script import ShellCommand, split_assignments

_PYTHON = re.compile(r"python(\d(\.\d+)?)?")
MODULE = "sglang.launch_server"
FILE = "launch_server.py"
OWN_COMMAND = "ascend-moe"


class ServerCommand(NamedTuple):
    """program: the words up to the flags, such as `nohup python -m sglang.launch_server`. flags: all that follow.
    environment and unresolved: as for `ShellCommand`."""

    program: list[str]
    flags: list[str]
    environment: dict[str, str]
    unresolved: frozenset[str] = frozenset()


def server_commands(commands: Iterable[ShellCommand]) -> list[ServerCommand]:
    """Those of the commands that start a server of SGLang, in their order."""
    return [server for command in commands if (server := _server(command)) is not None]


def _server(command: ShellCommand) -> ServerCommand | None:
    words, environment = list(command.words), dict(command.environment)
    if words[:1] == ["env"]:
        inner = split_assignments(words[1:])
        words, environment = inner.words, environment | inner.environment
    end = next((at + 2 for at in range(len(words) - 1) if _starts_server(words[at], words[at + 1])), None)
    if end is None:
        return None
    program, flags = words[:end], words[end:]
    if PurePath(program[-2]).name == OWN_COMMAND and flags and not flags[0].startswith("-"):
        flags.insert(0, "--model-path")
    return ServerCommand(program, flags, environment, command.unresolved)


def _starts_server(word: str, following: str) -> bool:
    """Whether flags of a server stand behind the two words."""
    name = PurePath(word).name
    if name in (OWN_COMMAND, "sglang"):
        return following == "serve"
    return (word, following) == ("-m", MODULE) or (bool(_PYTHON.fullmatch(name)) and PurePath(following).name == FILE)
