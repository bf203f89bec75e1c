"""The commands in a shell script: their words, and the variables that are exported to them.

Nothing is run. What only a run could tell stays as it is written: `$(...)`, and variables that the script does not set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from sglang_ascend_moe.errors import InvalidInput

_BLANKS = " \t\r"
_ENDS = ";&|()\n"
_REDIRECTIONS = "<>"
# Between two double quotes a backslash stands for itself before anything else.
_ESCAPED_IN_QUOTES = '"\\$`'
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?-([^{}$]*))?\})")
_OTHER_EXPANSION = re.compile(r"\$\{[^}]*\}|\$[\w@*#?!$-]|\$")
# What may stand before a command without being one.
_RESERVED = frozenset(("if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"))


class ShellCommand(NamedTuple):
    """words: as the shell would pass them. environment: what is exported to the command, with its own assignments.
    unresolved: words and values in which something stands as it is written, that the shell would put in at a run.
    """

    words: list[str]
    environment: dict[str, str]
    unresolved: frozenset[str] = frozenset()


def read_script(text: str) -> list[ShellCommand]:
    """The commands of a script in their order, but for those that only set variables. Raises `InvalidInput`, naming the
    line, for a quote that is not closed."""
    variables: dict[str, str] = {}
    exported: set[str] = set()
    reader = _Reader(text, variables)
    found = []
    for words in reader.commands():
        while words and words[0] in _RESERVED:
            words = words[1:]
        command = split_assignments(words)
        match command.words:
            case []:
                variables.update(command.environment)
            case ["export", *names]:
                variables.update(split_assignments(names).environment)
                exported |= {name.partition("=")[0] for name in names}
            case ["unset", *names]:
                exported -= set(names)
                for name in names:
                    variables.pop(name, None)
            case _:
                inherited = {name: value for name, value in variables.items() if name in exported}
                found.append(command._replace(environment=inherited | command.environment))
    return [command._replace(unresolved=frozenset(reader.unresolved)) for command in found]


def split_assignments(words: Sequence[str]) -> ShellCommand:
    """The words of one command, and the assignments `NAME=value` before it."""
    environment: dict[str, str] = {}
    for at, word in enumerate(words):
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment is None:
            return ShellCommand(list(words[at:]), environment)
        environment[assignment[1]] = assignment[2]
    return ShellCommand([], environment)


class _Reader:
    """Splits a text as the shell does. `variables` may change between two commands; `unresolved` as for a command."""

    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._variables = variables
        self.unresolved: set[str] = set()
        # How many expansions stand as they are written.
        self._unknown = 0

    def commands(self) -> Iterator[list[str]]:
        """The words of each command that has some, without redirections."""
        words: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in _BLANKS or self._text.startswith("\\\n", self._at):
                self._at += 1 if character in _BLANKS else 2
            elif character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character in _ENDS:
                self._at += 1
                if words:
                    yield words
                words = []
            elif character in _REDIRECTIONS:
                self._skip_redirection(words)
            else:
                words += self._word()
        if words:
            yield words

    def _skip_redirection(self, words: list[str]) -> None:
        # The number of the descriptor, which stands directly before it.
        if words and words[-1].isdecimal() and self._text[self._at - 1] not in _BLANKS:
            words.pop()
        while self._at < len(self._text) and self._text[self._at] in _REDIRECTIONS + "&":
            self._at += 1
        while self._at < len(self._text) and self._text[self._at] in _BLANKS:
            self._at += 1
        self._word()

    def _word(self) -> list[str]:
        """The next word; none where all of it is a variable that is empty, several where one holds several."""
        words = [""]
        quoted = False
        start = self._unknown
        while self._at < len(self._text) and self._text[self._at] not in _BLANKS + _ENDS + _REDIRECTIONS:
            match self._text[self._at]:
                case "\\":
                    escaped = self._text[self._at + 1 : self._at + 2]
                    words[-1] += "" if escaped == "\n" else escaped
                    self._at += 2
                case "'":
                    end = self._closing("'")
                    words[-1] += self._text[self._at + 1 : end]
                    self._at = end + 1
                    quoted = True
                case '"':
                    words[-1] += self._double_quoted()
                    quoted = True
                case "$" | "`":
                    known, value = self._expansion()
                    # Only what a variable holds is split, and not where it is assigned to another.
                    parts = value.split() if known and not _ASSIGNMENT.match(words[0]) else [value]
                    if known and parts:
                        words[-1] += parts[0]
                        words += parts[1:]
                    elif not known:
                        words[-1] += value
                case character:
                    words[-1] += character
                    self._at += 1
        if self._unknown > start:
            self.unresolved |= {word.partition("=")[2] if _ASSIGNMENT.match(word) else word for word in words}
        return words if quoted or words != [""] else []

    def _double_quoted(self) -> str:
        opened, value = self._at, ""
        self._at += 1
        while (character := self._text[self._at : self._at + 1]) != '"':
            following = self._text[self._at + 1 : self._at + 2]
            if not character:
                self._refuse_open('"', opened)
            if character == "\\" and following and following in _ESCAPED_IN_QUOTES + "\n":
                value += "" if following == "\n" else following
                self._at += 2
            elif character in "$`":
                value += self._expansion()[1]
            else:
                value += character
                self._at += 1
        self._at += 1
        return value

    def _expansion(self) -> tuple[bool, str]:
        """Whether the script says what stands there, and that; otherwise how it is written."""
        start = self._at
        if self._text[start] == "`":
            self._at = self._closing("`") + 1
        elif self._text.startswith("$(", start):
            self._at = self._behind_parentheses()
        elif variable := _VARIABLE.match(self._text, start):
            self._at = variable.end()
            name = variable[1] or variable[2]
            if name in self._variables:
                return True, self._variables[name]
            if variable[3] is not None:
                return True, variable[3]
        else:
            other = _OTHER_EXPANSION.match(self._text, start)
            self._at = other.end() if other else start + 1
        self._unknown += 1
        return False, self._text[start : self._at]

    def _behind_parentheses(self) -> int:
        depth, at = 0, self._at + 1
        while depth or at == self._at + 1:
            if at == len(self._text):
                self._refuse_open("$(", self._at)
            depth += {"(": 1, ")": -1}.get(self._text[at], 0)
            at += 1
        return at

    def _closing(self, quote: str) -> int:
        end = self._text.find(quote, self._at + 1)
        if end < 0:
            self._refuse_open(quote, self._at)
        return end

    def _refuse_open(self, quote: str, opened: int) -> NoReturn:
        line = self._text.count("\n", 0, opened) + 1
        raise InvalidInput(f"line {line}: {quote} is never closed; write what closes it")
