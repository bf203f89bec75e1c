"""The parser of every command: what is wrong with a command line is said in one line, with what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sglang_ascend_moe.exit_codes import WRONG_USAGE


class Parser(argparse.ArgumentParser):
    """argparse's, which would print all flags before the error."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unknown_arguments(unknown, _flags(self)))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: {' '.join(message.split())}; {self.prog} --help says more\n")


def unknown_arguments(unknown: Sequence[str], flags: Iterator[str] | Sequence[str]) -> str:
    """What to say of arguments that a parser with these flags does not know."""
    return f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0], flags)}"


def did_you_mean(word: str, known: Iterator[str] | Sequence[str]) -> str:
    """` (did you mean ...?)`, empty if nothing of what is known is like the word."""
    like = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    return f" (did you mean {like[0]}?)" if like else ""


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Those of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            yield from itertools.chain.from_iterable(map(_flags, action.choices.values()))
