"""What was probably meant by a word that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, empty if nothing of what is known is like the word."""
    # All flags are alike in their dashes.
    by_name = {name.lstrip("-"): name for name in sorted(known)}
    like = difflib.get_close_matches(word.partition("=")[0].lstrip("-"), by_name, n=1)
    return f"; did you mean {by_name[like[0]]}?" if like else ""
