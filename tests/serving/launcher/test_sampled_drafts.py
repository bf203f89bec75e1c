"""Where an NPU's image lacks the kernels for it, a server that drafts refuses what it could not sample."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.kernels.ops.sampling import renorm
from sglang.kernels.ops.speculative import verify_sampling

from sglang_ascend_moe.serving.launcher import request_checks
from sglang_ascend_moe.serving.launcher.sampled_drafts import refuse_unverifiable
from sglang_ascend_moe.serving.npu.sampling_kernels import missing_kernels
from tests.serving.launcher.test_request_checks import WITH, manager, request

ON_NPU = {"speculative_algorithm": "EAGLE", "device": "npu"}
SAMPLED: dict[str, dict[str, Any]] = {
    "as SGLang does without parameters": {},
    "a temperature": {"temperature": 0.7, "top_k": 20},
    "a temperature of null": {"temperature": None},
}
GREEDY = {"no temperature": {"temperature": 0}, "the likeliest token": {"temperature": 1.0, "top_k": 1}}


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang finds all of them."""
    monkeypatch.setattr(verify_sampling, "tree_speculative_sampling_target_only", print)
    for name in ("top_k_renorm_prob", "top_p_renorm_prob"):
        monkeypatch.setattr(renorm, name, print)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("sampling", SAMPLED.values(), ids=SAMPLED)
def test_what_is_sampled_needs_the_kernels(sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    refuse_unverifiable(SimpleNamespace(**ON_NPU), sampling)
    monkeypatch.setattr(renorm, "top_p_renorm_prob", None)
    assert missing_kernels() == ["top_p_renorm_prob"]
    with pytest.raises(ValueError, match="no top_p_renorm_prob here; ask with temperature 0"):
        refuse_unverifiable(SimpleNamespace(**ON_NPU), sampling)


@pytest.mark.parametrize("sampling", GREEDY.values(), ids=GREEDY)
def test_what_is_not_sampled_needs_none(sampling: dict[str, Any]):
    refuse_unverifiable(SimpleNamespace(**ON_NPU), sampling)


@pytest.mark.parametrize("settings", [{"speculative_algorithm": None}, {"device": "cpu"}], ids=str)
def test_other_servers_sample_without_them(settings: dict[str, Any]):
    refuse_unverifiable(SimpleNamespace(**ON_NPU | settings), {})


def test_a_request_is_refused_by_what_the_server_prefers(monkeypatch: pytest.MonkeyPatch):
    asked = manager(SimpleNamespace(**vars(WITH) | ON_NPU))
    with pytest.raises(ValueError, match="cannot be sampled"):
        request_checks.refuse_unusable_request(asked, request(), [1])
    monkeypatch.setattr(asked, "preferred_sampling_params", {"temperature": 0})
    request_checks.refuse_unusable_request(asked, request(), [1])
