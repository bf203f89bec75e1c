"""More ranks than cores: the tokens are the same, and ranks that wait leave the cores to those that work."""

import threading
import time

import pytest

from sglang_ascend_moe.launch.servers.server_process import group_members
from tests.serving.configurations import ours
from tests.serving.cpu_time import cpu_seconds
from tests.serving.prompts import NEW_TOKENS

REST_SECONDS = 10.0
MOST_AT_REST = 0.05
"""Of a core, for each rank; everything that belongs to the engine counts."""


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("ranks", "attention"),
    [
        pytest.param(8, {"dp_size": 8, "enable_dp_attention": True}, id="dp8-attention-ep8"),
        pytest.param(2, {"dp_size": 2, "enable_dp_attention": True}, id="dp2-attention-ep2"),
        pytest.param(2, {}, id="tp2-ep2"),
    ],
)
def test_ranks_beyond_the_cores_serve_and_rest(
    fork_server, checkpoint, prompts, stock_answers, compare_all, record_property, ranks, attention
):
    expected = stock_answers("bfloat16")
    with fork_server.start(ours(checkpoint, "bfloat16", tp_size=ranks, **attention)) as engine:
        compare_all(engine, prompts[:6], expected[:6], "bfloat16")
        processes = group_members(engine.pid)
        before, begun = {pid: cpu_seconds(pid) for pid in processes}, time.monotonic()
        # Time has to pass here: what is measured is the CPU time of doing nothing.
        threading.Event().wait(REST_SECONDS)
        took = {pid: cpu_seconds(pid) - before[pid] for pid in processes}
        share = sum(took.values()) / (time.monotonic() - begun)
        record_property("cores at rest", f"{share:.3f}")
        assert share < MOST_AT_REST * ranks, took
        engine.generate(prompts[:1], NEW_TOKENS)
