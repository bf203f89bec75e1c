"""SGLang's own NPU graph backend, over the stand-in for `torch.npu`, captures and replays a whole model with our layer.

Its answers are compared with those of our tapes, which run the same padded batches; `test_decode_graphs` and
`test_schedules` compare these with eager decode.
"""

import pytest

from tests.serving.configurations import PARALLEL, ours
from tests.serving.prompts import NEW_TOKENS


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["tp2-ep2", "dp2-attention-ep2"])
def test_a_model_captured_by_the_npu_backend_answers_as_with_our_tapes(fork_server, checkpoint, prompts, parallel: str):
    settings = {**PARALLEL[parallel], "max_running_requests": 4, "ascend_moe_require_graphs": True}
    with fork_server.start(ours(checkpoint, "float32", **settings)) as tapes:
        expected = tapes.generate(prompts, NEW_TOKENS)
    config = ours(checkpoint, "float32", "capture_with_the_npu_backend", **settings)
    with fork_server.start(config) as engine:
        assert engine.generate(prompts, NEW_TOKENS) == expected
        log = engine.log.read_text()
    # On both ranks, the idle one included, every decode step was a replay.
    assert log.count(f"replay {len(prompts) * (NEW_TOKENS - 1)} of the NPU backend") == 2


@pytest.mark.nightly
@pytest.mark.parametrize("graphs", [True, False], ids=["replayed", "eager"])
def test_a_model_with_the_experts_of_npus_answers_as_with_those_of_the_host(fork_server, checkpoint, prompts, graphs):
    settings = {**PARALLEL["tp2-ep2"], "max_running_requests": 4}
    settings |= {"ascend_moe_require_graphs": True} if graphs else {"disable_cuda_graph": True}
    with fork_server.start(ours(checkpoint, "bfloat16", "activate_as_an_npu", **settings)) as host:
        expected = host.generate(prompts, NEW_TOKENS)
    backend = ("capture_with_the_npu_backend",) if graphs else ()
    config = ours(checkpoint, "bfloat16", "compute_with_the_ascend_runner", *backend, **settings)
    with fork_server.start(config) as engine:
        assert engine.generate(prompts, NEW_TOKENS) == expected
        log = engine.log.read_text()
    assert log.count("the Ascend runner has computed 100 times") == 2
