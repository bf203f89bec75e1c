"""The prompts of the serving tests: pieces of the tokenizer's training text, 1 to 700 tokens long.

A random model decides one token in five by less than the rounding of bfloat16 may move it. These pieces were chosen so
that stock SGLang's smallest margin over NEW_TOKENS tokens is at least CHOSEN_MARGIN: then equal tokens can be demanded
of bfloat16 as well. `python -m tests.serving.choose_prompts` makes the choice and prints it.
"""

from typing import NamedTuple

from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes
from sglang_ascend_moe.launch.tiny_model.tokenizer import TRAINING_TEXT, build_tokenizer

NEW_TOKENS = 16
CHOSEN_MARGIN = 0.25
LENGTHS = (1, 2, 3, 5, 9, 17, 33, 64, 65, 127, 200, 300, 450, 700)


class Piece(NamedTuple):
    """`length` tokens of the text, from token `offset` on; the text repeats."""

    length: int
    offset: int


CHOSEN = (
    Piece(length=1, offset=77),
    Piece(length=2, offset=109),
    Piece(length=3, offset=568),
    Piece(length=5, offset=489),
    Piece(length=9, offset=125),
    Piece(length=17, offset=563),
    Piece(length=33, offset=681),
    Piece(length=64, offset=726),
    Piece(length=65, offset=605),
    Piece(length=127, offset=234),
    Piece(length=200, offset=0),
    Piece(length=300, offset=522),
    Piece(length=450, offset=166),
    Piece(length=700, offset=200),
)


def text_tokens() -> list[int]:
    """Token ids of the training text."""
    return build_tokenizer(TinySizes().vocab).encode(TRAINING_TEXT).ids


def cut(text: list[int], piece: Piece) -> list[int]:
    """Token ids of one piece."""
    return [text[(piece.offset + position) % len(text)] for position in range(piece.length)]


def chosen_prompts() -> list[list[int]]:
    """Token ids of all chosen prompts, shortest first."""
    text = text_tokens()
    return [cut(text, piece) for piece in CHOSEN]
