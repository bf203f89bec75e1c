"""Groups of data-parallel attention, as each served SGLang says them."""

from types import SimpleNamespace

import pytest

from sglang_ascend_moe.serving.launcher.attention_groups import attention_groups, data_parallel_ranks, model_replicas


@pytest.mark.parametrize(
    ("settings", "groups", "replicas"),
    [
        pytest.param({"dp_size": 1, "attn_dp_size": 1}, 1, 1, id="none"),
        pytest.param({"dp_size": 2, "attn_dp_size": 1}, 1, 2, id="replicas"),
        pytest.param({"dp_size": 2, "attn_dp_size": 1, "enable_dp_attention": True}, 2, 1, id="as given"),
        pytest.param({"dp_size": 1, "attn_dp_size": 2}, 2, 1, id="as resolved"),
        pytest.param({"dp_size": 1, "attn_dp_size": 2, "enable_dp_attention": True}, 2, 1, id="said twice"),
        pytest.param({"dp_size": 2}, 1, 2, id="replicas, 0.5.21"),
        pytest.param({"dp_size": 2, "enable_dp_attention": True}, 2, 1, id="as given and resolved, 0.5.21"),
    ],
)
def test_groups_are_found_in_settings_of_every_release(settings: dict[str, object], groups: int, replicas: int):
    found = SimpleNamespace(**{"enable_dp_attention": False, **settings})
    assert (attention_groups(found), model_replicas(found)) == (groups, replicas)


@pytest.mark.parametrize("sizes", [{"dp_size": 1, "num_dp_ranks": 2}, {"dp_size": 2}], ids=["now", "0.5.21"])
def test_requests_are_divided_among_as_many(sizes: dict[str, int]):
    assert data_parallel_ranks(SimpleNamespace(**sizes)) == 2
