"""Servers that a command line starts: what is wrong with one is a line and an exit code; `sglang.Engine` raises it."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import WRONG_USAGE

# SGLang's ServerArgs carries names with an underscore that are not its fields unchanged.
_ATTRIBUTE = "_ascend_moe_command_line"
_SGLANG_COMMAND = "sglang serve"
# What SGLang raises of arguments that it cannot use, and of a model that it cannot read.
_REFUSALS_OF_SGLANG = (AssertionError, NotImplementedError, OSError, ValueError)


def mark(server_args: Any) -> None:
    """Note that these server arguments were read from a command line."""
    setattr(server_args, _ATTRIBUTE, True)


def is_of_one(server_args: Any) -> bool:
    """Whether a command line started the server of these arguments, and not `sglang.Engine`."""
    return getattr(server_args, _ATTRIBUTE, False)


def watch_interrupts(server_args: Any) -> None:
    """From now on Ctrl-C ends the server without a traceback, if a command line started it."""
    if is_of_one(server_args):
        interrupts.watch(_SGLANG_COMMAND)


@contextlib.contextmanager
def refusals_end(server_args: Any, code: int = WRONG_USAGE) -> Iterator[None]:
    """An `AscendMoeError` in the block, or a refusal of SGLang, ends a server of a command line with this exit code."""
    try:
        yield
    except AscendMoeError as error:
        if not is_of_one(server_args):
            raise
        refuse(str(error), code)
    except _REFUSALS_OF_SGLANG as error:
        if not is_of_one(server_args):
            raise
        refuse(f"SGLang refuses this: {type(error).__name__}: {error}", code)


def refuse(message: str, code: int) -> NoReturn:
    """Say so in one line, and end this process. Raises SystemExit."""
    print(f"{interrupts.command() or _SGLANG_COMMAND}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def refuse_in_one_line(parser: argparse.ArgumentParser) -> None:
    """A parser of SGLang prints all of its flags, 39 KB, before what is wrong; not in a command of this package."""

    def error(message: str) -> NoReturn:
        refuse(message, WRONG_USAGE)

    if interrupts.command():
        parser.error = error  # type: ignore[method-assign]
