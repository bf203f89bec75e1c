"""Experts behind SGLang's DeepEP dispatcher on the host."""

from types import SimpleNamespace

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.worker import deep_ep_client


def layer(**attributes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"deprecate_flag": False, "quant_config": None, **attributes})


@pytest.mark.parametrize("attribute", ["deprecate_flag", "quant_config"])
def test_what_sglang_computes_itself_is_left_to_it(attribute):
    assert deep_ep_client.run_experts(lambda *_: "its own", layer(**{attribute: True}), None) == "its own"


def test_rows_in_fp8_are_refused_by_the_flag_to_give():
    rows = SimpleNamespace(hidden_states=None, hidden_states_scale=torch.ones(1), topk_ids=None, topk_weights=None)
    with pytest.raises(Unsupported, match="--deepep-dispatcher-output-dtype bf16"):
        deep_ep_client.run_experts(lambda *_: None, layer(), rows)
