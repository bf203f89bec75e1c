"""What was probably meant by a word that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, empty if nothing of what is known is like the word."""
    like = difflib.get_close_matches(word.partition("=")[0], sorted(known), n=1)
    return f"; did you mean {like[0]}?" if like else ""
