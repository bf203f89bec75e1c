"""Which function a router of an NPU scores experts with. No NPU has run this."""

import sys
from types import SimpleNamespace

import pytest

from sglang_ascend_moe.serving.npu.router_scores import score_by_sigmoid
from sglang_ascend_moe.serving.options import Options, attach


@pytest.mark.parametrize("asked", [True, False], ids=["ascend-moe", "stock"])
@pytest.mark.parametrize(
    ("grouped", "biased", "named", "scored"),
    [
        pytest.param(True, True, "softmax", "sigmoid", id="glm4-moe"),
        pytest.param(True, True, "sigmoid", "sigmoid", id="deepseek-v3"),
        pytest.param(True, True, "sqrtsoftplus", "sqrtsoftplus", id="deepseek-v4"),
        pytest.param(True, False, "softmax", "softmax", id="deepseek-v2"),
        pytest.param(False, True, "softmax", "softmax", id="bias-without-groups"),
        pytest.param(False, False, "softmax", "softmax", id="qwen3-moe"),
    ],
)
def test_a_grouped_router_with_a_bias_scores_as_on_other_machines(monkeypatch, asked, grouped, biased, named, scored):
    server_args = SimpleNamespace()
    if asked:
        attach(server_args, Options())
    context = SimpleNamespace(get_server_args=lambda: server_args)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    bias = object() if biased else None
    config = SimpleNamespace(use_grouped_topk=grouped, correction_bias=bias, scoring_func=named)
    score_by_sigmoid(None, SimpleNamespace(topk_config=config), 4, layer_id=0)
    assert config.scoring_func == (scored if asked else named)
