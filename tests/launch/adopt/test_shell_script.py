"""Scripts are read as a shell reads them, without running anything."""

from __future__ import annotations

import ast
import contextlib
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.adopt.shell_script import ShellCommand, read_script, split_assignments

WORDS = st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8"), max_size=12), max_size=6)
NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
# Each calls `show`, which prints its arguments and $SEEN.
SCRIPTS = {
    "quotes": """show 'a b' "c d" e\\ f "" '' g'h'"i" """,
    "escapes in double quotes": r"""show "a\"b" "c\\d" "e\nf" "g\$h" '\n' """,
    "JSON": """show --extra '{"a": "b c", "d": [1, 2]}'""",
    "continuations": "show --a 1 \\\n  --b \\\n  2 --c\\\nd",
    "comments": "# show not this\nshow a#b # but not this\nshow c #",
    "lists": "show a; show b && show c; show d & show e | cat\nshow f",
    "redirections": "show a > /dev/null; show b 2>/dev/null; show c 2>&1; show 1 >&1; show d</dev/null e",
    "variables": 'A="x y"; B=$A; show $A; show "$A" ${A} "${B}z"; show $A$B',
    "empty variables": 'A=; show $A "$A" a${A}b',
    "defaults": 'show ${NOTHING_SET:-8000} "${NOTHING_SET-a b}"; C=1; show ${C:-2}',
    "exported": "export SEEN=1; show a; export SEEN; SEEN=2; show b; SEEN=3; show c; unset SEEN; show d",
    "exported later": "SEEN=4; show a; export SEEN; show b",
    "of one command": "SEEN='5 6' show a; show b",
    "control": "if true; then show a; else show b; fi\nfor i in 1; do show c; done\n{ show d; }",
    "carriage returns": "A=1\r\nshow $A \\\r\n b\r\n",
}


def said_by_bash(script: str) -> list[list[str]]:
    """The arguments of each call of `show`, with what an exported SEEN is worth there."""
    # In one piece: two may write at a time.
    shown = """import os, sys; os.write(2, ascii([*sys.argv[1:], os.environ.get("SEEN", "")]).encode() + b"\\n")"""
    function = f'show() {{ python3 -c {shlex.quote(shown)} "$@" 2>&3; }}; exec 3>&2'
    # A shell takes carriage returns for a letter; some editors put one at the end of every line.
    script = script.replace("\r\n", "\n")
    done = subprocess.run(["bash", "-c", f"{function}\n{script}\nwait"], capture_output=True, text=True, check=True)
    return [ast.literal_eval(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_read_as_bash_runs_it(name: str):
    read = [
        [*command.words[1:], command.environment.get("SEEN", "")]
        for command in read_script(SCRIPTS[name])
        if command.words[0] == "show"
    ]
    expected = said_by_bash(SCRIPTS[name])
    if name == "control":
        # Nothing is run, so that both branches count.
        read.remove(["b", ""])
    if name == "lists":
        # In the background and in a pipe they come in any order.
        read, expected = sorted(read), sorted(expected)
    assert read == expected


@given(WORDS, st.dictionaries(NAMES, st.text(st.characters(exclude_characters="\0\r", codec="utf-8"), max_size=8)))
def test_words_that_were_quoted_are_read_back(words: list[str], environment: dict[str, str]):
    words = ["program", *words]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    text = " ".join([*assignments, shlex.join(words)])
    assert read_script(text) == [ShellCommand(words, environment)]
    exports = "\n".join(f"export {assignment}" for assignment in assignments)
    assert read_script(f"{exports}\n{shlex.join(words)} # and so on") == [ShellCommand(words, environment)]


@given(WORDS, st.dictionaries(NAMES, st.text(max_size=8)))
def test_assignments_are_told_from_words(words: list[str], environment: dict[str, str]):
    words = ["program", *words]
    given_words = [*(f"{name}={value}" for name, value in environment.items()), *words]
    assert split_assignments(given_words) == ShellCommand(words, environment)


@given(st.text(st.sampled_from("ab$\"'\\`(){}<>;&|# =\n\tA"), max_size=40))
def test_any_text_is_read_or_refused(text: str):
    with contextlib.suppress(InvalidInput):
        assert all(command.words for command in read_script(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb 'c\nd", "line 2: ' is never closed"),
        ('a "b', 'line 1: " is never closed'),
        ("\n\na $(b", "line 3: $( is never closed"),
        ("a `b", "line 1: ` is never closed"),
    ],
)
def test_a_quote_that_is_not_closed_is_named_with_its_line(text: str, said: str):
    with pytest.raises(InvalidInput) as refusal:
        read_script(text)
    assert str(refusal.value).startswith(said)


def test_what_only_a_run_could_tell_stays_as_it_is_written():
    (command,) = read_script('A=1 show "$MODEL/x" $(ls -l) `pwd` ${HOSTS[0]} $1 a$')
    assert command.words == ["show", "$MODEL/x", "$(ls -l)", "`pwd`", "${HOSTS[0]}", "$1", "a$"]
    assert command.unresolved == {"$MODEL/x", "$(ls -l)", "`pwd`", "${HOSTS[0]}", "$1", "a$"}
