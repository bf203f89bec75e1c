"""docs/troubleshooting.md lists every message that a user can meet, and none that does not exist."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.packaging.messages import FOREIGN, GAP, has_words, messages, own_exceptions, raised
from tests.packaging.source_tree import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"

# Where something else than an exception of the package is raised: it cannot happen, or is what the caller handles.
OTHERS = {
    ("launch/bench/rank.py", "RuntimeError"),
    ("launch/bench/records.py", "ValueError"),
    ("launch/forked_server.py", "TimeoutExpired"),
    ("launch/tiny_tokenizer.py", "ValueError"),
    ("sglang_ascend_moe/platforms/unnamed_memory.py", "FileNotFoundError"),
    ("sglang_ascend_moe/request_checks.py", "ValueError"),
}
ENDS = {"SystemExit"}
# What a `raise` without words of its own passes on, all of it read elsewhere: see `messages`.
PASSED_ON = re.compile(
    r"problem|routed|self\._poison|what|_bad_choice\(.*\)|f.\{FLAGS\[.require_graphs.\]\.flag\}: \{refused\}."
    r"|f.\{variant\}: \{.; .\.join\(found\)\}.|refusal\.decode\(\)|refusal\(.*\)"
)


@cache
def listed_messages() -> list[str]:
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(), flags=re.MULTILINE)
    return [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]


def matches(phrase: str, message: str) -> bool:
    """Whether the words of the phrase stand in the message in their order, with gaps wherever either has one."""
    words = [word.strip() for word in phrase.split(GAP) if word.strip()]
    pattern = ".*".join(re.escape(word) for word in words)
    return re.search(pattern, message, flags=re.DOTALL) is not None


@pytest.mark.parametrize("message", sorted(messages()), ids=lambda message: message[:60])
def test_every_message_is_listed(message):
    assert any(matches(phrase, message) for phrase in listed_messages()), message


@pytest.mark.parametrize("phrase", listed_messages(), ids=lambda phrase: phrase[:60])
def test_every_listed_message_exists(phrase):
    assert any(matches(phrase, message) for message in messages()), phrase


def test_every_exception_is_of_the_package():
    known = own_exceptions() | FOREIGN | ENDS | {"kind"}
    assert {(place.file, place.exception) for place in raised() if place.exception not in known} == OTHERS


def test_what_is_passed_on_is_read_where_it_is_made():
    wordless = {
        place.source.removeprefix(f"{place.exception}(").removesuffix(")")
        for place in raised()
        if place.exception not in ENDS and not has_words(place.message)
    }
    assert {source for source in wordless if not PASSED_ON.fullmatch(source)} == set()
