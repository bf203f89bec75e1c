"""Exercises with exact answers, which a tiny model can learn: sorting and copying digits, and sums.

A tenth of them, by a checksum of the question, is held out: no model is trained on it.
"""

import random
import zlib
from typing import NamedTuple

LONGEST = 8
"""Most digits that are sorted or copied."""
LARGEST = 50
"""Both terms of a sum are smaller."""
HELD_OUT = 10


class Exercise(NamedTuple):
    """A question and the only right answer."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a completion goes on from with the answer, after which the model ends its turn."""
        return f"{self.question} ="

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT == 0


def drawn(generator: random.Random, count: int, *, held_out: bool) -> list[Exercise]:
    """`count` exercises, all of them held out or none; a third of each kind."""
    found: list[Exercise] = []
    while len(found) < count:
        exercise = _KINDS[len(found) % len(_KINDS)](generator)
        if exercise.is_held_out == held_out:
            found.append(exercise)
    return found


def _sorting(generator: random.Random) -> Exercise:
    digits = _digits(generator)
    return Exercise(f"sort {digits}", "".join(sorted(digits)))


def _copying(generator: random.Random) -> Exercise:
    digits = _digits(generator)
    return Exercise(f"copy {digits}", digits)


def _sum(generator: random.Random) -> Exercise:
    left, right = generator.randrange(LARGEST), generator.randrange(LARGEST)
    return Exercise(f"{left} + {right}", str(left + right))


def _digits(generator: random.Random) -> str:
    return "".join(generator.choices("0123456789", k=generator.randint(2, LONGEST)))


_KINDS = (_sorting, _copying, _sum)
