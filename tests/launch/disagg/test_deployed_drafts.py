"""Prefill and decode servers that draft: what the draft model has read, and its first drafts, move with the prompt."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.launch.disagg.deployed import Deployed, description, get, tokens_through
from tests.serving.configurations import stock
from tests.serving.draft_models import PROMPTS, Drafted, write_drafted
from tests.serving.engines import ForkServer
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

# So that tokens are demanded to be equal, whoever computes them.
OPTIONS = {"dtype": "float32", "random-seed": 0}


class Form(NamedTuple):
    """How tokens are drafted; `branches` and `tokens` of a tree."""

    algorithm: str
    steps: int
    branches: int
    tokens: int

    def options(self, checkpoints: Drafted) -> dict[str, str | int]:
        """Those of a role."""
        draft = {} if checkpoints.draft is None else {"speculative-draft-model-path": str(checkpoints.draft)}
        return draft | {
            "speculative-algorithm": self.algorithm,
            "speculative-num-steps": self.steps,
            "speculative-eagle-topk": self.branches,
            "speculative-num-draft-tokens": self.tokens,
        }


class Setup(NamedTuple):
    """accepted: tokens that a step of a request gives at least, averaged. groups: of ranks with attention of their
    own. drafting: the roles that draft."""

    family: str
    form: Form | None
    accepted: float
    groups: int = 1
    drafting: tuple[str, ...] = ("prefill", "decode")


SETUPS = {
    "NEXTN, chains": Setup("deepseek_v3", Form("NEXTN", 2, 1, 3), 1.5),
    "NEXTN, trees": Setup("deepseek_v3", Form("NEXTN", 3, 2, 5), 1.5, groups=2),
    "EAGLE3, chains": Setup("qwen3_moe", Form("EAGLE3", 3, 1, 4), 1.5, groups=2),
    "EAGLE3, trees": Setup("qwen3_moe", Form("EAGLE3", 3, 2, 6), 1.5),
    "NEXTN, only where tokens are written": Setup("deepseek_v3", Form("NEXTN", 2, 1, 3), 1.2, drafting=("decode",)),
    "no drafts": Setup("deepseek_v3", None, 0.0, groups=2),
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_a_deployment_gives_the_tokens_of_one_server_without_drafts(setup: Setup, tmp_path: Path):
    checkpoints = write_drafted(tmp_path / "checkpoints", setup.family)
    with ForkServer(tmp_path) as fork_server, fork_server.start(stock(checkpoints.model, OPTIONS["dtype"])) as engine:
        expected = [answer.tokens for answer in engine.generate(PROMPTS, NEW_TOKENS)]
    values = description(checkpoints.model)
    for role in ("prefill", "decode"):
        drafts = setup.form.options(checkpoints) if setup.form and role in setup.drafting else {}
        values[role] |= {"options": OPTIONS | drafts, "dp_size": setup.groups}
    with Deployed(values, tmp_path / "deployment") as deployment:
        deployment.wait_until_serving()
        alone, together = tokens_through(deployment, PROMPTS, NEW_TOKENS)
        states = get(f"{deployment.url('decode-0')}/server_info")["internal_states"]
    assert alone == expected
    assert together == expected
    # Of the group that answered last; one that did not has 0.
    assert max(state.get("avg_spec_accept_length", 0.0) for state in states) >= setup.accepted
