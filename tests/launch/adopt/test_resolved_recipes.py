"""What SGLang itself makes of the published recipes with the package: a server refuses in the words of `adopt`; without
what is refused, its experts would be the exchange's."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.launch.adopt.flag_changes import split_flags
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.launcher.replaced_settings import A2A_BACKEND
from tests.launch.adopt.recipe_page import adopted
from tests.launch.adopt.recipes import recipes

pytestmark = pytest.mark.nightly

DRAFT = "X"
"""Where recipes have the folder of a draft model."""
STATES = ("--mamba-",)
"""What only models with a state of linear attention have."""
FILES = ("--init-expert-location",)
"""What names files that are not here."""


class Outcome(NamedTuple):
    """server: name and role. said: what SGLang says of the flags; see `tests.launch.disagg.resolving`."""

    server: str
    said: dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    model, configs = write_checkpoint(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("configs")
    # Large enough for all; only the config is read.
    config = json.loads((model / "config.json").read_text())
    large = {"num_experts": 512, "max_position_embeddings": 2**18}
    (model / "config.json").write_text(json.dumps(config | large))
    servers, commands = [], []
    for recipe in recipes().values():
        for role, adoption in adopted(recipe, configs).items():
            words = [str(model) if word in ("MODEL", DRAFT) else word for word in adoption.command[3:]]
            flags = list(split_flags(words))
            rest = [part for part in flags if not part.name.startswith((*STATES, *FILES))]
            commands.append([*(word for part in rest for word in part.words()), "--device", "npu"])
            servers.append(f"{recipe.name} ({role})")
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.disagg.resolving"], input=json.dumps(commands), capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Outcome(*each) for each in zip(servers, json.loads(done.stdout)["outcomes"], strict=True)]


def test_sglang_gives_the_experts_of_every_recipe_to_the_exchange(outcomes: list[Outcome]):
    assert {outcome.server: outcome.said["refused"] for outcome in outcomes if outcome.said["refused"]} == {}
    assert {outcome.said["backend"] for outcome in outcomes} == {A2A_BACKEND}
