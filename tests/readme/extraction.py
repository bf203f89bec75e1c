"""What README.md and the first section of every page of docs/ tell people to type, read from their text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

README = "README.md"
TYPED = {"sh", "python"}
SHOWN = {"", "text", "toml", "json", "yaml", "cpp"}
"""Languages of blocks that are typed, and of those that are only read."""
INLINE = re.compile(r"`((?:make|pip install) [^`]+)`")
"""Commands that stand in a sentence; other programs are also mentioned there without being typed."""
SERVER = re.compile(r"(ascend-moe (serve|disagg up)|sglang serve|python -m sglang\.launch_server)\b")
ENGINE = "sglang.Engine("
DEFAULT_PORTS = {"ascend-moe disagg up": 8000, "": 30000}
"""Where a server listens that is told nothing, by how its command begins."""
ADDRESS = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+")
WRITTEN = re.compile(r"[\w-]+\.(?:json|svg|py)")
"""Files by which one command hands something to another; those of the repository are named with their folder."""


class Block(NamedTuple):
    """A fenced block. line: of its first line of content."""

    language: str
    line: int
    text: str


class Command(NamedTuple):
    """A command of the shell, without its comment."""

    page: str
    line: int
    text: str

    @property
    def files(self) -> frozenset[str]:
        """What it may write or read that no repository holds."""
        return frozenset(word for word in shlex.split(self.text) if WRITTEN.fullmatch(word))


class Snippet(NamedTuple):
    """A block of Python. file: what the commands after it call it; empty if none names it, so that it runs alone."""

    page: str
    line: int
    text: str
    file: str

    @property
    def files(self) -> frozenset[str]:
        return frozenset({self.file} - {""})


Step = Command | Snippet


class Scene(NamedTuple):
    """Servers that run at the same time, and the commands that ask them."""

    servers: tuple[Command, ...]
    clients: tuple[Command, ...]


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page. Raises ValueError for one that does not end."""
    opened: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened = Block(line.removeprefix("```").strip(), number + 1, "")
        elif opened is not None and line.rstrip() == "```":
            yield opened
            opened = None
        elif opened is not None:
            opened = opened._replace(text=f"{opened.text}{line}\n")
    if opened is not None:
        raise ValueError(f"the block of line {opened.line} does not end")


def first_section(text: str) -> str:
    """A page up to its second heading of the second level; hashes in fenced blocks are no headings."""
    fenced, headings, kept = False, 0, []
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        headings += not fenced and line.startswith("## ")
        if headings == 2:
            break
        kept.append(line)
    return "".join(kept)


def commands_in(block: str) -> Iterator[tuple[int, str]]:
    """The commands of a block of the shell and their lines, counted from 0: one on each line, longer ones continued."""
    begun, start = "", 0
    for number, line in enumerate(block.splitlines()):
        if not begun:
            start = number
        begun = f"{begun} {without_comment(line).strip()}".strip()
        if begun.endswith("\\"):
            begun = begun.removesuffix("\\").rstrip()
        elif begun:
            yield start, begun
            begun = ""


def without_comment(line: str) -> str:
    """A line of the shell without the comment at its end."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def steps_of(page: str, text: str) -> list[Step]:
    """Everything that `text`, which is the beginning of `page`, tells to type, in its order."""
    prose = re.sub(r"^```.*?^```", _blank, text, flags=re.MULTILINE | re.DOTALL)
    steps: list[Step] = [
        Command(page, prose[: found.start()].count("\n") + 1, found[1]) for found in INLINE.finditer(prose)
    ]
    for block in blocks(text):
        if block.language == "sh":
            steps += [Command(page, block.line + number, command) for number, command in commands_in(block.text)]
        elif block.language == "python":
            steps.append(Snippet(page, block.line, block.text, ""))
    steps.sort(key=lambda step: step.line)
    return [
        step._replace(file=_name_given(steps[place + 1 :])) if isinstance(step, Snippet) else step
        for place, step in enumerate(steps)
    ]


def _blank(block: re.Match[str]) -> str:
    return "\n" * block[0].count("\n")


def _name_given(later: Iterable[Step]) -> str:
    """What the commands before the next snippet call a file of Python."""
    for step in later:
        if isinstance(step, Snippet):
            break
        for name in step.files:
            if name.endswith(".py"):
                return name
    return ""


def texts(root: Path) -> dict[str, str]:
    """The pages of the repository at `root`, by name: README whole, of the others the first section."""
    pages = {README: (root / README).read_text()}
    for path in sorted((root / "docs").glob("*.md")):
        pages[str(path.relative_to(root))] = first_section(path.read_text())
    return pages


def documented(root: Path) -> list[Step]:
    """Every step of the pages of `root`, README's first."""
    return [step for page, text in texts(root).items() for step in steps_of(page, text)]


def has_ranks(step: Step) -> bool:
    """Whether a step is a server, asks one, or starts an engine."""
    if isinstance(step, Snippet):
        return ENGINE in step.text
    return SERVER.match(step.text) is not None or bool(ports_asked(step.text))


def port_of(server: str) -> int:
    """Where a server's command listens."""
    given = re.search(r"--port[ =](\d+)", server)
    return int(given[1]) if given else next(port for begin, port in DEFAULT_PORTS.items() if server.startswith(begin))


def ports_asked(command: str) -> set[int]:
    """The ports of this machine that a command names."""
    return {int(port) for port in ADDRESS.findall(command)}


def with_ports(command: str, ports: dict[int, int]) -> str:
    """A server's or client's command with the ports of `ports` (documented -> real) filled in."""
    if SERVER.match(command):
        documented = port_of(command)
        if "--port" not in command:
            return f"{command} --port {ports[documented]}"
        return re.sub(r"(--port[ =])\d+", rf"\g<1>{ports[documented]}", command)
    return ADDRESS.sub(lambda found: str(ports[int(found[0])]), command)


def scenes(steps: Iterable[Step]) -> list[Scene]:
    """Every server, once for all pages that start it alike, with the commands that ask it.

    A command asks the last server before it on its page that listens where it asks, or else the first of all pages.
    Servers that stand one below the other at one port are other ways to start one, which nobody asks. A command that
    names two ports has two servers run at the same time. Raises ValueError for a port that nobody listens on.
    """
    commands = [step for step in steps if isinstance(step, Command)]
    servers = [command for command in commands if SERVER.match(command.text)]
    by_text: dict[str, Command] = {}
    for server in servers:
        by_text.setdefault(server.text, server)
    ways = _other_ways(commands)
    asked: dict[tuple[str, ...], list[Command]] = {}
    for client in commands:
        if client in servers or not (ports := ports_asked(client.text)):
            continue
        chosen = sorted((_server_for(port, client, servers, ways) for port in ports), key=servers.index)
        asked.setdefault(tuple(server.text for server in chosen), []).append(client)
    for text in by_text:
        if not any(text in together for together in asked):
            asked[(text,)] = []
    found = [Scene(tuple(by_text[text] for text in together), tuple(clients)) for together, clients in asked.items()]
    order = list(by_text.values())
    return sorted(found, key=lambda scene: max(order.index(server) for server in scene.servers))


def _other_ways(commands: list[Command]) -> set[Command]:
    found = set()
    for one, next_one in pairwise(commands):
        both = SERVER.match(one.text) and SERVER.match(next_one.text) and one.page == next_one.page
        if both and port_of(one.text) == port_of(next_one.text):
            found |= {one, next_one}
    return found


def _server_for(port: int, client: Command, servers: list[Command], other_ways: set[Command]) -> Command:
    listening = [server for server in servers if port_of(server.text) == port]
    before = [
        server
        for server in listening
        if server.page == client.page and server.line < client.line and server not in other_ways
    ]
    if not listening:
        raise ValueError(f"{client.page}:{client.line}: no documented server listens at port {port}: {client.text}")
    return before[-1] if before else listening[0]


def needs(step: Step, steps: Iterable[Step]) -> list[Step]:
    """The steps before `step` on its page that name a file which it names too."""
    return [other for other in steps if other.page == step.page and other.line < step.line and other.files & step.files]
