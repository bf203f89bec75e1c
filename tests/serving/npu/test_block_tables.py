"""A rank without requests gives attention a table with a page. No NPU has run this."""

from types import SimpleNamespace

import pytest
import torch

from sglang_ascend_moe.serving.npu.block_tables import with_a_page
from sglang_ascend_moe.serving.options import Options, attach


@pytest.mark.parametrize(
    ("rows", "columns", "asked", "expected"),
    [(3, 0, True, [3, 1]), (3, 0, False, [3, 0]), (3, 2, True, [3, 2]), (0, 0, True, [0, 0])],
    ids=["padding alone", "stock", "with keys", "nothing"],
)
def test_a_table_of_padding_has_one_page(rows, columns, asked, expected, monkeypatch):
    from sglang.srt import runtime_context

    server_args = SimpleNamespace()
    if asked:
        attach(server_args, Options())
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: server_args)
    table = torch.ones(rows, columns, dtype=torch.int32)
    backend = SimpleNamespace(forward_metadata=SimpleNamespace(block_tables=table))
    with_a_page(None, backend, SimpleNamespace())
    found = backend.forward_metadata.block_tables
    assert (list(found.shape), found.dtype) == (expected, torch.int32)
    assert (found is table) or not found.any()
