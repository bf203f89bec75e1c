"""A rank that waits for nobody: what the others would have written lies in its window already."""

from __future__ import annotations

import ctypes
import mmap
import struct

import torch

from sglang_ascend_moe.native.codes import Kind, Part
from sglang_ascend_moe.native.session import NativeSession, initialise_window
from sglang_ascend_moe.windows.layout import COUNTS_PER_UNIT, LINE_BYTES, UNIT_BYTES, WindowLayout

EPOCH = 1
WORD = EPOCH << 16 | Kind.DECODE


class LoneRank:
    """Rank 0 of an exchange whose other ranks bring nothing."""

    def __init__(self, layout: WindowLayout) -> None:
        self._layout = layout
        ranks = layout.parameters.ranks
        # Only pages that are written to take memory.
        self._memory = mmap.mmap(-1, ranks * layout.total_bytes)
        own = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        windows = [own + rank * layout.total_bytes for rank in range(ranks)]
        initialise_window(layout, own)
        self._session = NativeSession(layout, 0, windows, [-1] * ranks)
        self._call = self._session.new_call(layout.parameters.max_tokens)
        numbers = struct.pack(f"<Q{COUNTS_PER_UNIT}I", WORD, *[0] * COUNTS_PER_UNIT) * layout.count_units
        record = struct.pack("<QIIQII", WORD, 0, 0, 0, 0, 0) + numbers
        grant = struct.pack("<4Q", WORD, 0, 0, 0) + numbers
        for source in range(1, ranks):
            ctypes.memmove(own + layout.offsets.records + (ranks + source) * len(record), record, len(record))
            if layout.granting:
                ctypes.memmove(own + layout.offsets.grants + source * len(grant), grant, len(grant))
            self._push(own + layout.offsets.arrive, source, WORD)
            self._push(own + layout.offsets.done, source, EPOCH << 16 | 1)
        assert len(record) == (1 + layout.count_units) * UNIT_BYTES

    def _push(self, lines: int, source: int, word: int) -> None:
        ctypes.c_uint64.from_address(lines + source * LINE_BYTES).value = word

    def dispatch(self) -> None:
        """Of a token that is not routed."""
        p = self._layout.parameters
        x, ids = torch.zeros(1, p.hidden, dtype=torch.bfloat16), torch.full((1, p.topk), -1)
        self._call.take(x, ids, torch.ones(1, p.topk), Kind.DECODE, Part.WHOLE, keep_weights=False)
        self._session.dispatch(self._call)

    def exchange(self) -> None:
        """One dispatch and one combine of it."""
        self.dispatch()
        self._session.combine(self._call, torch.zeros(1, self._layout.parameters.hidden, dtype=torch.bfloat16))
