"""An engine that was asked for our MoE layer and cannot have it does not start, and says why."""

import re

import pytest

from tests.serving.configurations import ours
from tests.serving.engines import EngineFailure


def test_a_hook_that_does_not_apply_is_named(fork_server, checkpoint):
    with pytest.raises(EngineFailure, match=r"Unsupported: .*hardware_backend\.npu\.moe\.fuseep\.forward_fuseep"):
        fork_server.start(ours(checkpoint, "bfloat16", "remove_moe_entry_point"))


def test_windows_that_do_not_fit_into_memory_are_refused_with_the_flags_to_change(fork_server, checkpoint):
    message = r"Unsupported: 2 ranks with windows of .* has 1000 left\. Lower --ascend-moe-window-bytes"
    with pytest.raises(EngineFailure, match=message):
        fork_server.start(ours(checkpoint, "bfloat16", "leave_no_memory"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"ascend_moe_window_bytes": "64KiB"}, "WindowTooSmall: --ascend-moe-window-bytes 65536", id="window"
        ),
        pytest.param({"ascend_moe_max_tokens": 8}, "InvalidInput: --ascend-moe-max-tokens 8", id="max-tokens"),
        pytest.param(
            {"ascend_moe_schedule": "collective", "ascend_moe_quant": "int8"},
            "InvalidInput: --ascend-moe-quant with --ascend-moe-schedule collective",
            id="quant",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"ascend_moe_schedule": "fastest"},
            "InvalidInput: --ascend-moe-schedule 'fastest'",
            id="schedule",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"ascend_moe_schedule": "prefill", "ascend_moe_require_graphs": True},
            "CaptureRefused: --ascend-moe-require-graphs",
            id="graphs",
        ),
        pytest.param({"enable_mixed_chunk": True}, "Unsupported: --enable-mixed-chunk", id="mixed-chunk"),
        pytest.param(
            {"enable_two_batch_overlap": True},
            "Unsupported: --enable-two-batch-overlap",
            id="two-batch",
            marks=pytest.mark.nightly,
        ),
        pytest.param({"tp_size": 3}, "Unsupported: --ep-size 3: 16 experts cannot be divided", id="uneven-experts"),
    ],
)
def test_what_cannot_be_served_is_refused(fork_server, checkpoint, arguments, message):
    with pytest.raises(EngineFailure, match=re.escape(message)):
        fork_server.start(ours(checkpoint, "bfloat16", **arguments))
