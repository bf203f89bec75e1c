"""docs/troubleshooting.md explains every exception, and every message that does not say what to do.

It lists no message that does not exist.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.packaging.source_tree import ROOT
from tests.packaging.user_messages import FOREIGN, GAP, has_words, messages, own_exceptions, raised

PAGE = ROOT / "docs" / "troubleshooting.md"

# Where something else than an exception of the package is raised: it cannot happen, or is what the caller handles.
OTHERS = {
    ("graph_capture/__init__.py", "AttributeError"),
    ("sglang_ascend_moe/__init__.py", "AttributeError"),
    ("launch/bench/rank.py", "RuntimeError"),
    ("launch/bench/records.py", "ValueError"),
    ("launch/disagg/served.py", ""),
    ("launch/tiny_model/tokenizer.py", "ValueError"),
    ("sglang_ascend_moe/exchange/control/channel.py", "EOFError"),
    ("sglang_ascend_moe/exchange/control/network.py", "EOFError"),
    ("sglang_ascend_moe/serving/host/unnamed_memory.py", "FileNotFoundError"),
    ("sglang_ascend_moe/serving/launcher/request_checks.py", "ValueError"),
    ("sglang_ascend_moe/serving/launcher/sampled_drafts.py", "ValueError"),
}
ENDS = {"SystemExit"}
# What a `raise` without words of its own passes on, all of it read elsewhere: see `messages`.
PASSED_ON = re.compile(
    r"problem|routed|type\(refusal\)\(said|f.\{nowhere\}; \{problem\}.|f.\{address\.host_flag\} \{host\}: \{why\}."
    r"|f.\{. .\.join\(given\)\}: \{. .\.join\(str\(error\)\.split\(\)\)\}.|self\._poison|what|_bad_choice\(.*\)"
    r"|f.\{FLAGS\[.require_graphs.\]\.flag\}: \{refused\}."
    r"|f.\{variant\}: \{.; .\.join\(found\)\}.|refusal|(conflict\.)?refusal\(.*\)"
    r"|f.\{source\}: \{error\}."
    r"|f.\{FLAG\} \{shown\}: \{error\}.|f.--\{written\.name\.replace\(.*\)\} \{value\}: \{error\}."
)


# A message says what to do if it names a flag, a command, an argument, or how something has to be, or tells to do it.
_VERBS = (
    "ask|change|check|choose|combine|correct|create|dispatch|give|install|leave|lower|make|open|pass|raise|rebuild|record"
    "|report|return|run|serve|set|share|source|start|stop|take|try|unset|use|wait|write"
)
SAYS_WHAT_TO_DO = re.compile(
    rf"--[a-z]|`[^`]+`|\w=|\b[a-z]+_\w+\b|\b(must|needs?|needed|at least|outside|{_VERBS})\b", re.IGNORECASE
)
# Below this heading a first cell is an exception; elsewhere it is words of a message.
EXCEPTIONS = "Exceptions"


@cache
def sections() -> dict[str, str]:
    """Heading -> what stands below it, for headings of the second level."""
    return {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]}


def first_cells(section: str) -> list[str]:
    return re.findall(r"^\| ([^|]+?) \|", section, flags=re.MULTILINE)[1:]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@cache
def listed_messages() -> list[str]:
    cells = [cell for title, section in sections().items() if title != EXCEPTIONS for cell in first_cells(section)]
    return [phrase for cell in cells for phrase in quoted(cell)]


def matches(phrase: str, message: str) -> bool:
    """Whether the words of the phrase stand in the message in their order, with gaps wherever either has one."""
    if len(re.findall(r"[A-Za-z]+", phrase)) < 3:
        # With gaps anywhere so few words would stand in too many messages.
        return phrase in message
    words = [word.strip() for word in phrase.split(GAP) if word.strip()]
    pattern = ".*".join(re.escape(word) for word in words)
    return re.search(pattern, message, flags=re.DOTALL) is not None


@pytest.mark.parametrize("message", sorted(messages()), ids=lambda message: message[:60])
def test_every_message_says_what_to_do_or_the_page_does(message):
    told = SAYS_WHAT_TO_DO.search(message) or any(matches(phrase, message) for phrase in listed_messages())
    assert told, f"neither this message nor docs/troubleshooting.md says what to do: {message}"


@pytest.mark.parametrize("message", ["x of rank 1 is 3", "rank 1 has gone; rank 2 waits for it", "--", "the setting"])
def test_a_message_that_only_complains_is_seen(message):
    assert SAYS_WHAT_TO_DO.search(message) is None


@pytest.mark.parametrize("phrase", listed_messages(), ids=lambda phrase: phrase[:60])
def test_every_listed_message_exists(phrase):
    assert any(matches(phrase, message) for message in messages()), phrase


def test_every_exception_is_explained_and_exists():
    named = [name for cell in first_cells(sections()[EXCEPTIONS]) for name in quoted(cell)]
    assert set(named) | {"AscendMoeError"} == own_exceptions()


def test_every_exception_is_of_the_package():
    known = own_exceptions() | FOREIGN | ENDS
    assert {(place.file, place.exception) for place in raised() if place.exception not in known} == OTHERS


def test_what_is_passed_on_is_read_where_it_is_made():
    wordless = {
        place.source.removeprefix(f"{place.exception}(").removesuffix(")")
        for place in raised()
        if place.exception not in ENDS and not has_words(place.message)
    }
    assert {source for source in wordless if not PASSED_ON.fullmatch(source)} == set()
