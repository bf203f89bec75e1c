"""How routers of an NPU choose experts: as SGLang's do on other machines. No NPU has run this."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ascend_moe.serving.npu.routers import choose_groups_by_their_best, score_by_sigmoid
from sglang_ascend_moe.serving.options import Options, attach
from tests.npu.operators.modules import install_operators

TOKENS, EXPERTS, GROUPS, KEPT_GROUPS, TOPK = 200, 16, 4, 2, 4


@pytest.fixture(params=[True, False], ids=["ascend-moe", "stock"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the server was started with `--ascend-moe`."""
    from sglang.srt import runtime_context

    server_args = SimpleNamespace()
    if request.param:
        attach(server_args, Options())
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: server_args)
    return request.param


def router(*, grouped: bool, biased: bool, named: str) -> Any:
    """What SGLang's router of a model has been told."""
    bias = torch.zeros(EXPERTS) if biased else None
    return SimpleNamespace(
        use_grouped_topk=grouped, correction_bias=bias, scoring_func=named, top_k=TOPK, renormalize=False,
        topk_group=KEPT_GROUPS, num_expert_group=GROUPS, routed_scaling_factor=1.0, num_shared_topk_slots=0,
        apply_routed_scaling_factor_on_output=False,
    )  # fmt: skip


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
def test_a_grouped_router_with_a_bias_scores_by_sigmoid(asked, grouped, biased, named, scored):
    config = router(grouped=grouped, biased=biased, named=named)
    score_by_sigmoid(None, SimpleNamespace(topk_config=config), TOPK, layer_id=0)
    assert config.scoring_func == (scored if asked else named)


def test_a_router_with_groups_alone_ranks_them_by_their_best_expert(asked, monkeypatch):
    from sglang.srt.layers.moe import topk

    from sglang.srt.hardware_backend.npu.moe import topk as topk_of_npu  # isort: skip

    def native(_rows: torch.Tensor, logits: torch.Tensor, config: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        groups = config.num_expert_group, config.topk_group
        return topk.grouped_topk(logits, logits, config.top_k, config.renormalize, *groups)

    install_operators()
    monkeypatch.setattr(topk, "select_experts", native)
    monkeypatch.setattr(
        topk_of_npu, "_finalize_topk_npu", lambda **chosen: (chosen["topk_weights"], chosen["topk_ids"])
    )
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(0))
    config = router(grouped=True, biased=False, named="softmax")
    _, found = choose_groups_by_their_best(
        topk_of_npu.fused_topk_npu, logits, logits, config, torch.tensor(TOKENS), layer_id=0
    )
    _, expected = native(logits, logits, config)
    assert torch.equal(found.long().sort().values, expected.long().sort().values) == asked


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("named", [{"grouped": True, "biased": True}, {"grouped": False, "biased": False}], ids=str)
def test_other_routers_are_sglangs_own(named):
    given = torch.zeros(1), torch.ones(1), router(named="softmax", **named), None, None, 3
    assert choose_groups_by_their_best(lambda *arguments: arguments, *given) == given
