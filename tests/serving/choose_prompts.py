"""Chooses the prompts of the serving tests and prints them, as tests/serving/prompts.py has them."""

import random
import tempfile
from pathlib import Path

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import stock
from tests.serving.engines import Engine, ForkServer
from tests.serving.prompts import CHOSEN_MARGIN, LENGTHS, NEW_TOKENS, Piece, cut, text_tokens

BATCH = 24


def first_clear_piece(engine: Engine, text: list[int], length: int) -> Piece:
    """The first piece of `length`, in a fixed random order of offsets, that stock SGLang continues without doubt."""
    offsets = list(range(len(text)))
    random.Random(length).shuffle(offsets)
    for start in range(0, len(offsets), BATCH):
        pieces = [Piece(length, offset) for offset in offsets[start : start + BATCH]]
        answers = engine.generate([cut(text, piece) for piece in pieces], NEW_TOKENS, together=True)
        for piece, answer in zip(pieces, answers, strict=True):
            if min(answer.margin(position) for position in range(NEW_TOKENS)) >= CHOSEN_MARGIN:
                return piece
    raise LookupError(f"no piece of {length} tokens has all margins above {CHOSEN_MARGIN}")


def main() -> None:
    text = text_tokens()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint")
        config = stock(checkpoint, "bfloat16")
        with ForkServer(Path(folder)) as fork_server, fork_server.start(config) as engine:
            for length in LENGTHS:
                print(f"    {first_clear_piece(engine, text, length)},", flush=True)


if __name__ == "__main__":
    main()
