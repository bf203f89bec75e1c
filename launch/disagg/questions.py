"""The prompts of `ascend-moe disagg check`, and the answers they are compared with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.tokenizer import TRAINING_TEXT

# Characters of each prompt: from what every tokenizer has as one token to several chunks of a small prefill.
LENGTHS = (1, 3, 9, 20, 45, 90, 180, 350, 600, 1000, 1700, 2600)


def prompts(longest: int) -> list[str]:
    """Pieces of English text of up to `longest` characters; each begins elsewhere, so that none is another's prefix."""
    text = " ".join(TRAINING_TEXT.split())
    text *= 2 + longest // len(text)
    lengths = [length for length in LENGTHS if length < longest] + [longest]
    words = [place + 1 for place, letter in enumerate(text[: len(text) // 2]) if letter == " "]
    return [text[words[7 * number] :][:length] for number, length in enumerate(lengths)]


class Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers of a server that is known to be right, kept in a file."""

    prompts: list[str]
    new_tokens: int
    answers: list[Answer]


def write_recorded(path: Path, recorded: Recorded) -> None:
    path.write_bytes(msgspec.json.encode(recorded))


def read_recorded(path: Path, asked: list[str], new_tokens: int) -> list[Answer]:
    """The answers in `path`. Raises `InvalidInput` if it holds no answers to the prompts that are asked."""
    try:
        recorded = msgspec.json.decode(path.read_bytes(), type=Recorded)
    except OSError as error:
        raise InvalidInput(f"--reference {path}: {error.strerror}; give an address, or a file of --record") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"--reference {path}: not a file of --record: {error}") from error
    if (recorded.prompts, recorded.new_tokens) != (asked, new_tokens):
        raise InvalidInput(
            f"--reference {path}: recorded with other prompts, --longest or --new-tokens; record it again"
        )
    return recorded.answers
