"""The parser of every command: what is wrong with a command line is said in one line, with what was probably meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from sglang_ascend_moe.serving.launcher.exit_codes import WRONG_USAGE
from sglang_ascend_moe.serving.launcher.suggestions import did_you_mean


def address(text: str) -> str:
    """The type of flags that take the address of a server. Raises `ArgumentTypeError`."""
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise argparse.ArgumentTypeError(f"{text!r} must be an address; give one such as http://localhost:30000")
    return text


class Parser(argparse.ArgumentParser):
    """argparse's, which would print all flags before the error.

    more: what to say of arguments that are not known.
    """

    def __init__(self, *arguments: Any, more: str = "", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._more = more

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            judge = self._subcommand(words)
            judge.error(
                f"unrecognized arguments: {' '.join(unknown)}"
                + did_you_mean(unknown[0], judge._option_string_actions)
                + self._more
            )
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: {' '.join(message.split())}; {self.prog} --help says more\n")

    def _subcommand(self, words: Sequence[str]) -> argparse.ArgumentParser:
        """The parser that judges the flags of a command line."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
                return action.choices[words[0]]
        return self
