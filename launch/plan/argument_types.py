"""Types of the arguments of `ascend-moe plan`. They raise `ArgumentTypeError`."""

from __future__ import annotations

import argparse

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.serving.options import parse_bytes


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def size_in_bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except AscendMoeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 67108864, 64MiB or 1.5GiB") from error
