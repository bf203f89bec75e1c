"""What SGLang itself makes of the published recipes with the package: their experts are the exchange's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.launch.adopt.flag_changes import split_flags
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.launcher.refusals import EXPERT_NAMES
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


FAMILIES = {"deepseek-v3-2": "deepseek_v32", "glm5-1": "glm_moe_dsa"}
"""Of models whose attention decides what becomes of flags; of others every tiny model does."""


class Outcome(NamedTuple):
    """server: name and role. said: what SGLang says of the flags; see `tests.launch.disagg.resolving`."""

    server: str
    said: dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    configs = tmp_path_factory.mktemp("configs")
    models = {
        family: write_large(tmp_path_factory.mktemp(family), family) for family in ("qwen3_moe", *FAMILIES.values())
    }
    servers, commands = [], []
    for recipe in recipes().values():
        for role, adoption in adopted(recipe, configs).items():
            model = models[FAMILIES.get(recipe.model, "qwen3_moe")]
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


def write_large(folder: Path, family: str) -> Path:
    """Large enough for all recipes; only the config is read."""
    model = write_checkpoint(folder, family)
    config = json.loads((model / "config.json").read_text())
    large = {"max_position_embeddings": 2**18} | {name: 512 for name in EXPERT_NAMES if name in config}
    (model / "config.json").write_text(json.dumps(config | large))
    return model


def test_sglang_gives_the_experts_of_every_recipe_to_the_exchange(outcomes: list[Outcome]):
    assert {outcome.server: outcome.said["refused"] for outcome in outcomes if outcome.said["refused"]} == {}
    assert {outcome.said["backend"] for outcome in outcomes} == {A2A_BACKEND}
