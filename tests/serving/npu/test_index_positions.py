"""Indexers turn keys by the positions of their own forward pass. No NPU has run this."""

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.serving.npu.index_positions import KEPT, forget_other_passes
from sglang_ascend_moe.serving.options import Options, attach


@pytest.fixture(params=[True, False], ids=["ascend-moe", "stock"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the server was started with `--ascend-moe`; its layers 1 and 2 have indexers."""
    from sglang.srt import runtime_context
    from sglang.srt.model_executor import forward_context

    server_args = SimpleNamespace()
    if request.param:
        attach(server_args, Options())
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: server_args)
    monkeypatch.setattr(forward_context, "get_token_to_kv_pool", lambda: SimpleNamespace(indexer_layer_ids=(1, 2)))
    return request.param


def test_a_batch_that_is_run_again_gets_the_angles_of_its_positions_in_the_first_layer(asked):
    batch, made = SimpleNamespace(), []

    def indexer(_self: Any, _x: Any, _q_lora: Any, positions: Any, forward_batch: Any, layer_id: int, *_: Any) -> Any:
        """As SGLang's keeps what it has made."""
        if not hasattr(forward_batch, KEPT):
            setattr(forward_batch, KEPT, positions)
            made.append(layer_id)
        return getattr(forward_batch, KEPT)

    turned = [
        [forget_other_passes(indexer, None, None, None, positions, batch, layer) for layer in (1, 2)]
        for positions in ("warm-up", "captured")
    ]
    assert turned == [["warm-up"] * 2, ["captured" if asked else "warm-up"] * 2]
    assert made == ([1, 1] if asked else [1])
