"""Idle ranks sleep on a host, unless the user says otherwise."""

from typing import Any

import pytest

from sglang_ascend_moe.serving.launcher import arguments
from sglang_ascend_moe.serving.options import options_of


def sleeps(monkeypatch: pytest.MonkeyPatch, on_host: bool, **keywords: Any) -> bool:
    from sglang.srt.arg_groups.overrides import resolving_view

    monkeypatch.setattr(arguments.hooks, "on_host", lambda: on_host)
    server_args = arguments.engine_server_args(model_path="dummy", device="cpu", ascend_moe=True, **keywords)
    arguments.let_idle_ranks_sleep(server_args, options_of(server_args))
    return resolving_view(server_args).sleep_on_idle


@pytest.mark.parametrize(
    ("on_host", "keywords", "expected"),
    [
        pytest.param(True, {}, True, id="host"),
        pytest.param(True, {"sleep_on_idle": True}, True, id="host-asked-to"),
        pytest.param(True, {"sleep_on_idle": False}, False, id="host-asked-not-to"),
        pytest.param(True, {"ascend_moe_stay_awake": True}, False, id="host-flag"),
        pytest.param(False, {}, False, id="npu"),
        pytest.param(False, {"sleep_on_idle": True}, True, id="npu-asked-to"),
    ],
)
def test_idle_ranks_sleep_on_a_host_unless_the_user_says_otherwise(monkeypatch, on_host, keywords, expected):
    assert sleeps(monkeypatch, on_host, **keywords) is expected
