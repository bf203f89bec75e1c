"""Indexers turn keys by the positions of their own forward pass, over tables with a page. No NPU has run this."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.npu.indexed_batches import KEPT, index
from sglang_ascend_moe.serving.options import Options, attach


@pytest.fixture(
    params=[(True, "0.5.23"), (True, "0.5.18"), (False, "0.5.23")], ids=["ascend-moe", "ascend-moe-0.5.18", "stock"]
)
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the server was started with `--ascend-moe`; its layers 1 and 2 have indexers."""
    from sglang.srt import runtime_context
    from sglang.srt.model_executor import forward_context

    server_args = SimpleNamespace()
    is_asked, release = request.param
    if is_asked:
        attach(server_args, Options())
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: server_args)
    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    # Which layers have one, pools of the earlier release do not say.
    pool = SimpleNamespace(start_layer=1) if release == "0.5.18" else SimpleNamespace(indexer_layer_ids=(1, 2))
    monkeypatch.setattr(forward_context, "get_token_to_kv_pool", lambda: pool)
    backend = SimpleNamespace(forward_metadata=SimpleNamespace(block_tables=None))
    monkeypatch.setattr(forward_context, "get_attn_backend", lambda: backend)
    return is_asked


def test_a_batch_that_is_run_again_gets_the_angles_of_its_positions_in_the_first_layer(asked):
    batch, made = SimpleNamespace(), []

    def indexer(_self: Any, _x: Any, _q_lora: Any, positions: Any, forward_batch: Any, layer_id: int, *_: Any) -> Any:
        """As SGLang's keeps what it has made."""
        if not hasattr(forward_batch, KEPT):
            setattr(forward_batch, KEPT, positions)
            made.append(layer_id)
        return getattr(forward_batch, KEPT)

    turned = [
        [index(indexer, None, None, None, positions, batch, layer) for layer in (1, 2)]
        for positions in ("warm-up", "captured")
    ]
    assert turned == [["warm-up"] * 2, ["captured" if asked else "warm-up"] * 2]
    assert made == ([1, 1] if asked else [1])


@pytest.mark.parametrize(
    ("rows", "columns", "given"),
    [(3, 0, [3, 1]), (3, 2, [3, 2]), (0, 0, [0, 0])],
    ids=["padding alone", "with keys", "nothing"],
)
def test_a_table_of_padding_has_one_page(asked, rows, columns, given):
    from sglang.srt.model_executor import forward_context

    table = torch.ones(rows, columns, dtype=torch.int32)
    metadata = forward_context.get_attn_backend().forward_metadata
    metadata.block_tables = table
    index(lambda *_: None, None, None, None, None, SimpleNamespace(), 1)
    found = metadata.block_tables
    assert (list(found.shape), found.dtype) == (given if asked else [rows, columns], torch.int32)
    assert (found is table) or not found.any()
