"""What a decode step asks of an emulated NPU, beside what SGLang's own step asks of it. No NPU has run this."""

from collections import Counter
from pathlib import Path

import pytest

from tests.serving.configurations import ours_on_npu, stock_on_npu
from tests.serving.decode_steps import counted_steps
from tests.serving.engines import EngineConfig, ForkServer
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [4]}
SPREAD = Counter({"allocation": 5, "copy from the host": 3, "copy on the device": 1})
"""What SGLang's runner asks for besides, outside of the graph, where experts are spread: which tokens are padding."""

EXCHANGED = Counter(
    {
        # Behind the step, where SGLang copies its tokens: what the launches have found, and what other ranks have told.
        "copy to the host": 2,
    }
)
"""What an exchange asks for."""

WATCHED = {"allocation", "value read", "host synchronisation", "copy on the device", *EXCHANGED}


def test_a_step_asks_for_what_sglangs_own_asks_for_and_for_an_exchange(npu_fork_server, checkpoint: Path, prompts):
    stock = steps(npu_fork_server, stock_on_npu(checkpoint, PATCH, tp_size=2, **GRAPHS), prompts[0])
    ours = steps(npu_fork_server, ours_on_npu(checkpoint, PATCH, **GRAPHS), prompts[0])
    assert stock["graph replayed"] == ours["graph replayed"] == 1
    expected = stock + SPREAD + EXCHANGED
    assert {name: ours[name] for name in WATCHED} == {name: expected[name] for name in WATCHED}


PATCH = "count_decode_steps"


def steps(fork_server: ForkServer, config: EngineConfig, prompt: list[int]) -> Counter[str]:
    """What the last steps of an answer asked for, which are all alike on all ranks."""
    with fork_server.start(config) as engine:
        engine.generate([prompt], NEW_TOKENS)
    *_, before, last = counted_steps(engine.log.read_text())
    assert before == last
    return last
