from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput
from sglang_ascend_moe.serving.launcher.context_parallelism import (
    FUSED_ATTENTION,
    Attention,
    refuse_context_flags,
    refuse_divided_prefill,
)

GROUPED, LATENT, SPARSE = Attention(False, False), Attention(True, False), Attention(True, True)


def settings(**given: Any) -> Any:
    defaults = {
        "tp_size": 8, "attn_cp_size": 2, "dp_size": 1, "attn_dp_size": 1, "enable_dp_attention": False,
        "enable_prefill_cp": True, "cp_strategy": "zigzag",
        "disaggregation_mode": "null",
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **given})


@pytest.mark.parametrize(
    ("given", "groups", "named"),
    [
        pytest.param({"attn_cp_size": 3}, 1, ["--attn-cp-size 3", "--tp-size 8", "divides 8"], id="ranks"),
        pytest.param({"attn_cp_size": 8}, 2, ["--attn-cp-size 8", "2 groups", "divides 4"], id="ranks of a group"),
        pytest.param({"attn_cp_size": 0}, 1, ["--attn-cp-size 0", "divides 8"], id="none"),
        pytest.param({"cp_strategy": None}, 1, ["--enable-prefill-cp", "--cp-strategy zigzag"], id="strategy"),
        pytest.param({"disaggregation_mode": "decode"}, 1, ["--attn-cp-size 2", "prefill instance only"], id="decode"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_by_name(given: dict[str, Any], groups: int, named: list[str]):
    with pytest.raises(InvalidInput) as refusal:
        refuse_context_flags(settings(**given), groups)
    assert [part for part in named if part not in str(refusal.value)] == []
    assert str(refusal.value).startswith("--")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"cp_strategy": "interleave", "disaggregation_mode": "prefill"},
        {"enable_prefill_cp": False, "cp_strategy": None},
        {"attn_cp_size": 1, "enable_prefill_cp": False, "disaggregation_mode": "decode"},
    ],
    ids=str,
)
def test_flags_that_go_together_are_let_through(given: dict[str, Any]):
    refuse_context_flags(settings(**given), groups=4)


@pytest.mark.parametrize(
    ("given", "attention", "on_npu", "refused"),
    [
        pytest.param({"attn_cp_size": 1}, GROUPED, False, "--attn-cp-size", id="nobody to divide it among"),
        pytest.param({"attn_dp_size": 2}, GROUPED, False, "without --dp-size", id="grouped queries and data-parallel"),
        pytest.param({"attn_dp_size": 2}, LATENT, False, "", id="latent and data-parallel"),
        pytest.param({}, LATENT, True, "one rank only", id="latent on NPUs"),
        pytest.param({"attn_dp_size": 2, "cp_strategy": "interleave"}, SPARSE, True, "", id="sparse on NPUs"),
        pytest.param({"cp_strategy": "interleave"}, GROUPED, True, "use --cp-strategy zigzag", id="grouped on NPUs"),
        pytest.param({}, GROUPED, True, "", id="grouped on NPUs, zigzag"),
        pytest.param({"cp_strategy": "interleave"}, GROUPED, False, "", id="grouped on a host"),
    ],
)
def test_what_sglang_does_not_divide_is_refused(
    given: dict[str, Any], attention: Attention, on_npu: bool, refused: str
):
    if not refused:
        refuse_divided_prefill(settings(**given), attention, {FUSED_ATTENTION: "1"}, on_npu=on_npu)
        return
    with pytest.raises(AscendMoeError) as refusal:
        refuse_divided_prefill(settings(**given), attention, {FUSED_ATTENTION: "1"}, on_npu=on_npu)
    assert refused in str(refusal.value)
    assert str(refusal.value).startswith("--")


@pytest.mark.parametrize("environment", [{}, {FUSED_ATTENTION: "0"}], ids=str)
def test_grouped_queries_on_npus_need_the_attention_that_takes_a_part_of_a_text(environment: dict[str, str]):
    with pytest.raises(InvalidInput, match=f"--enable-prefill-cp.*{FUSED_ATTENTION}=1.*set it"):
        refuse_divided_prefill(settings(), GROUPED, environment, on_npu=True)
    refuse_divided_prefill(settings(), SPARSE, environment, on_npu=True)
    refuse_divided_prefill(settings(), GROUPED, environment, on_npu=False)
