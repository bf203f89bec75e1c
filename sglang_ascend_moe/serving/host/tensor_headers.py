"""What the files of a checkpoint in safetensors say of its tensors, read without them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

_LENGTH = struct.Struct("<Q")


class TensorHeader(msgspec.Struct):
    """dtype: as safetensors calls it."""

    dtype: str
    shape: list[int]


def files_of(folder: Path) -> list[Path]:
    """The files in safetensors of a checkpoint."""
    return sorted(folder.glob("*.safetensors"))


def headers_of(folder: Path) -> Iterator[tuple[str, TensorHeader]]:
    """Names and headers of all tensors; nothing of a file that is damaged, which SGLang names when it loads it."""
    for file in files_of(folder):
        yield from _headers(file)


def _headers(file: Path) -> Iterator[tuple[str, TensorHeader]]:
    with file.open("rb") as stream:
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return
        (length,) = _LENGTH.unpack(head)
        if length > file.stat().st_size:
            return
        try:
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            for name, raw in header.items():
                if name != "__metadata__":
                    yield name, msgspec.json.decode(raw, type=TensorHeader)
        except msgspec.DecodeError:
            return
