"""Flags of a command line as `--ascend-moe` takes them: what newer SGLang calls otherwise, and what the exchange takes
the place of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sglang_ascend_moe.launch.adopt.changes import Change
from sglang_ascend_moe.launch.adopt.older_flags import REMOVED, RENAMED
from sglang_ascend_moe.serving.launcher.given_flags import known_flags
from sglang_ascend_moe.serving.launcher.replaced_settings import REPLACED_BACKENDS, SCHEDULES
from sglang_ascend_moe.serving.options import FLAGS

SCHEDULE = FLAGS["schedule"].flag
QUANT = FLAGS["quant"].flag
_FLAG = re.compile(r"--?[A-Za-z][\w-]*")


class FlagWords(NamedTuple):
    """One flag of a command line: its name, its values, and whether the first was joined to it by `=`."""

    name: str
    values: tuple[str, ...]
    joined: bool = False

    def words(self) -> list[str]:
        if self.joined:
            return [f"{self.name}={self.values[0]}", *self.values[1:]]
        return [self.name, *self.values]


class _Replacement(NamedTuple):
    """now: the words that stand in place of a flag with these values; None if the flag stays, and may be refused."""

    now: Callable[[tuple[str, ...]], list[str] | None]
    why: str


def _dropped(*values: str) -> Callable[[tuple[str, ...]], list[str] | None]:
    """Whatever its value is, or only if it is one of these."""
    return lambda given: [] if not values or given in {(value,) for value in values} else None


def _schedule(given: tuple[str, ...]) -> list[str] | None:
    if given == ("auto",):
        return []
    chosen = SCHEDULES.get(given[0]) if len(given) == 1 else None
    return None if chosen is None else [SCHEDULE, chosen]


_ROWS: Mapping[tuple[str, ...], list[str]] = {("auto",): [], ("bf16",): [], ("int8",): [QUANT, "int8"]}

REPLACED: Mapping[str, _Replacement] = {
    "--moe-a2a-backend": _Replacement(_dropped(*REPLACED_BACKENDS), "the exchange takes its place"),
    "--deepep-mode": _Replacement(_schedule, "the exchange has schedules of its own, which it chooses by batch"),
    "--deepep-config": _Replacement(_dropped(), "it tunes DeepEP, which is not used"),
    "--deepep-dispatcher-output-dtype": _Replacement(_ROWS.get, "it is the format of DeepEP's rows"),
    "--fuseep-mode": _Replacement(_dropped(), "it chooses a fused kernel of SGLang, which is not used"),
}


CP_STRATEGY = "--cp-strategy"
ONLY_STRATEGY: Mapping[str, str] = {
    "DeepseekV32ForCausalLM": "interleave",
    "MiMoV2ForCausalLM": "zigzag",
    "MiMoV2FlashForCausalLM": "zigzag",
}
"""Architecture -> the one way in which SGLang divides its texts among context-parallel ranks."""


def change_flags(words: Sequence[str], architecture: str | None = None) -> tuple[list[str], list[Change]]:
    """The flags to give instead, and what was changed. architecture: of the model, if it is known."""
    kept: list[str] = []
    changes = []
    for flag in split_flags(words):
        now, change = _divided_as_can_be(flag, *_changed(flag), ONLY_STRATEGY.get(architecture or ""))
        kept += now
        if change is not None:
            changes.append(change)
    return kept, changes


def split_flags(words: Sequence[str]) -> Iterator[FlagWords]:
    """Each flag with its values. What stands before the first flag is a flag without a name."""
    name, values, joined = "", [], False
    for word in words:
        flag, equals, value = word.partition("=")
        if not _FLAG.fullmatch(flag):
            values.append(word)
            continue
        if name or values:
            yield FlagWords(name, tuple(values), joined)
        name, values, joined = flag, [value] if equals else [], bool(equals)
    if name or values:
        yield FlagWords(name, tuple(values), joined)


def _changed(flag: FlagWords) -> tuple[list[str], Change | None]:
    name = _written_out(flag.name)
    was = " ".join(flag.words())
    if name in REMOVED:
        return [], Change("dropped", was, "", f"SGLang has no such flag any more: {REMOVED[name]}")
    if newer := RENAMED.get(name):
        values = [newer.value] if newer.value is not None else [newer.values.get(value, value) for value in flag.values]
        now = [newer.flag, *values]
        return now, Change("renamed", was, " ".join(now), "SGLang calls it so now")
    replacement = REPLACED.get(name)
    words = None if replacement is None else replacement.now(flag.values)
    if replacement is None or words is None:
        return flag.words() if flag.name else list(flag.values), None
    return words, Change("translated" if words else "dropped", was, " ".join(words), replacement.why)


def _divided_as_can_be(
    flag: FlagWords, now: list[str], change: Change | None, strategy: str | None
) -> tuple[list[str], Change | None]:
    if strategy is None or now[:1] != [CP_STRATEGY] or now[1:] == [strategy]:
        return now, change
    words = [CP_STRATEGY, strategy]
    why = "SGLang divides the texts of this model in this way only"
    return words, Change("translated", " ".join(flag.words()), " ".join(words), why)


def _written_out(name: str) -> str:
    """A flag that is abbreviated, as SGLang's parser takes it; itself if several, or none, begin so."""
    known = known_flags() | set(RENAMED) | set(REMOVED)
    if name in known or not name.startswith("--"):
        return name
    like = [flag for flag in known if flag.startswith(name)]
    return like[0] if len(like) == 1 else name
