"""`ascend-moe adopt`: an existing command line of SGLang, and what becomes of it with `--ascend-moe`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import msgspec

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput
from sglang_ascend_moe.launch.adopt.adoption import Adoption, adopt
from sglang_ascend_moe.launch.adopt.server_command import ServerCommand, server_commands
from sglang_ascend_moe.launch.adopt.shell_script import read_script, split_assignments
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.launch.plan.moe_config import MoeShape, read_moe_shape
from sglang_ascend_moe.launch.plan.sizes import exactly
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE
from sglang_ascend_moe.serving.launcher.given_flags import flags_of

STARTS = ("python -m sglang.launch_server", "sglang serve", "ascend-moe serve")


class Adoptions(msgspec.Struct, frozen=True):
    """What `--json` prints: each server of the command line or script."""

    servers: list[Adoption]


def main(arguments: list[str]) -> int:
    """Returns 1 if a server would be refused, 2 for what is not understood."""
    own, dashes, words = _divided(arguments)
    parsed = _parser().parse_args(own)
    try:
        servers = _servers(parsed.file, words if dashes else None)
        adopted = Adoptions([_adopt(server, parsed.model_config, parsed.device) for server in servers])
    except AscendMoeError as error:
        print(f"ascend-moe adopt: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USAGE
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(adopted), indent=1).decode())
    else:
        print("\n\n".join(map(_text, servers, adopted.servers)))
    return CHECK_FAILED if any(server.refusals for server in adopted.servers) else OK


def _divided(arguments: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """The flags of this command, whether `--` follows, and what stands behind it."""
    if "--" not in arguments:
        return list(arguments), False, []
    at = arguments.index("--")
    return list(arguments[:at]), True, list(arguments[at + 1 :])


def _servers(file: Path | None, words: list[str] | None) -> list[ServerCommand]:
    if (file is None) == (words is None):
        raise InvalidInput("give either -- COMMAND ..., or --file with a script of the shell")
    if file is not None:
        source = f"--file {file}"
        try:
            commands = read_script(file.read_text())
        except OSError as error:
            raise InvalidInput(f"{source}: {error.strerror}; give a script of the shell") from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{source}: must be a file of text") from error
        except InvalidInput as error:
            raise InvalidInput(f"{source}: {error}") from error
    else:
        source = "COMMAND"
        # All in one word: it was quoted for the shell.
        quoted = len(words or []) == 1
        commands = read_script((words or [])[0]) if quoted else [split_assignments(words or [])]
    found = server_commands(commands)
    if not found:
        raise InvalidInput(f"{source}: it starts no server of SGLang; give a command such as {', '.join(STARTS)}")
    return found


def _adopt(server: ServerCommand, config: Path | None, device: str) -> Adoption:
    try:
        return adopt(server, _shape(server, config), device)
    except InvalidInput as error:
        open_ended = [word for word in server.flags if word in server.unresolved]
        if not any(word in str(error) for word in open_ended):
            raise
        listed = ", ".join(word for word in open_ended if word in str(error))
        raise InvalidInput(f"{error}. Only the shell knows what {listed} is; write it out") from error


def _shape(server: ServerCommand, config: Path | None) -> MoeShape | None:
    """Of `--model-config`, or of the model if it is a folder of this machine."""
    if config is not None:
        return read_moe_shape(config, "--model-config")
    for word, following in zip_longest(server.flags, server.flags[1:], fillvalue=""):
        flag, _, value = word.partition("=")
        folder = Path(value or following)
        if flag in flags_of("model_path") and (folder / "config.json").is_file():
            return read_moe_shape(folder, flag)
    return None


def _text(server: ServerCommand, adoption: Adoption) -> str:
    """For people: what can be typed, then what was changed and what would be refused."""
    lines = [f"export {name}={_quoted(value, server)}" for name, value in adoption.environment.items()]
    lines.append(_command(server, adoption.command))
    lines += ["", *(f"{change.kind}: {_became(change.was, change.now)}: {change.why}" for change in adoption.changes)]
    if (window := adoption.window) is not None:
        rounds = f"{window.rounds_even} round(s) if ranks receive alike, {window.rounds_worst} at worst"
        lines.append(
            f"window: {exactly(window.bytes)} on each rank for {window.tokens_per_rank} tokens per rank; prefill takes"
            f" {rounds}"
        )
        lines += [f"  {name}: {exactly(size)}" for name, size in window.in_place_of.items()]
    lines += [f"note: {note}" for note in adoption.notes]
    lines += [f"refused: {refusal.message}" for refusal in adoption.refusals]
    if not adoption.refusals:
        lines.append("No flag would be refused.")
    return "\n".join(lines)


def _became(was: str, now: str) -> str:
    return f"{was} -> {now}" if now else was


def _command(server: ServerCommand, words: Sequence[str]) -> str:
    """A flag and its values on a line of their own."""
    parts = [_quoted(word, server) for word in words]
    return " ".join(
        f"\\\n    {part}" if word.startswith("--") else part for word, part in zip(words, parts, strict=True)
    )


def _quoted(word: str, server: ServerCommand) -> str:
    if word not in server.unresolved:
        return shlex.quote(word)
    # The shell has to go on putting in what it knows.
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _parser() -> Parser:
    parser = Parser(
        prog="ascend-moe adopt",
        usage="ascend-moe adopt [flags] (-- COMMAND ... | --file SCRIPT)",
        description="Reads a command that starts a server of SGLang 0.5.18 or newer, with its environment, and prints"
        " the one for --ascend-moe, what was changed and why, the bytes of the window, and what would be refused."
        " Nothing is started. Exit codes: 0 it would start, 1 refused, 2 not understood.",
    )
    parser.add_argument("--file", type=Path, metavar="SCRIPT", help="a script of the shell that starts servers")
    parser.add_argument(
        "--model-config", type=Path, metavar="PATH",
        help="the model's folder or config.json (default: the folder of --model-path, if it is on this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "npu"), default="npu", help="of a server that does not say it (default npu)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser
