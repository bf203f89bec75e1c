"""Published recipes through `ascend-moe adopt`: each would start, or is refused for what is not supported yet.

When something becomes supported, it goes from `OPEN` and from the table; a recipe that is left with nothing starts.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.adopt.adopt_command import main
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK
from tests.launch.adopt import recipe_page
from tests.launch.adopt.recipes import MODELS, OPEN, recipes, write_config
from tests.launch.adopt.tried_parts import in_words

_NOTHING: set[str] = set()
_PIPELINE = {"pipeline parallelism"}

REFUSED_FOR: dict[str, set[str]] = {
    "deepseek-r1-w4a8-1": _NOTHING,
    "deepseek-r1-w4a8-2": _NOTHING,
    "deepseek-r1-w8a8-2": _NOTHING,
    "deepseek-r1-w8a8-3": _NOTHING,
    "deepseek-r1-w8a8-5": _NOTHING,
    "deepseek-v3-2-w8a8-1": _NOTHING,
    "deepseek-v3-2-w8a8-3": _NOTHING,
    "glm5-1-w4a8-1": _NOTHING,
    "glm5-1-w4a8-3": _NOTHING,
    "glm5-1-w4a8-4": _PIPELINE,
    "glm5-1-w4a8-6": _NOTHING,
    "glm5-1-w4a8-7": _NOTHING,
    "glm5-1-w4a8-9": _PIPELINE,
    "kimi-k2-6-w4a8-1": _NOTHING,
    "kimi-k2-6-w4a8-3": _NOTHING,
    "kimi-k2-6-w4a8-4": _NOTHING,
    "kimi-k2-6-w4a8-6": _NOTHING,
    "kimi-k2-6-w4a8-7": _NOTHING,
    "kimi-k2-6-w4a8-9": _NOTHING,
    "kimi-k2-6-w4a8-10": _NOTHING,
    "minimax-m2-5-w8a8-1": _NOTHING,
    "minimax-m2-5-w8a8-2": _NOTHING,
    "minimax-m2-5-w8a8-4": _NOTHING,
    "minimax-m2-5-w8a8-5": _NOTHING,
    "minimax-m2-5-w8a8-7": _NOTHING,
    "minimax-m2-5-w8a8-8": _NOTHING,
    "qwen3-235b-a22b-w8a8-1": _NOTHING,
    "qwen3-30b-a3b-bf16-1": _NOTHING,
    "qwen3-30b-a3b-w8a8-2": _NOTHING,
    "qwen3-30b-a3b-w8a8-3": _NOTHING,
    "qwen3-5-397b-w4a8-2": _NOTHING,
    "qwen3-5-397b-w4a8-3": _NOTHING,
    "qwen3-5-397b-w4a8-5": _NOTHING,
    "qwen3-5-397b-w4a8-6": _NOTHING,
    "qwen3-5-397b-w4a8-8": _NOTHING,
    "qwen3-5-397b-w4a8-9": _NOTHING,
    "qwen3-6-35b-a3b-w8a8-1": _NOTHING,
    "qwen3-6-35b-a3b-w8a8-2": _NOTHING,
    "qwen3-6-35b-a3b-w8a8-4": _NOTHING,
    "qwen3-6-35b-a3b-w8a8-5": _NOTHING,
    "qwen3-6-35b-a3b-w8a8-7": _NOTHING,
    "qwen3-6-35b-a3b-w8a8-8": _NOTHING,
    "qwen3-next-80b-a3b-instruct-w8a8-1": _NOTHING,
    "qwen3-next-80b-a3b-instruct-w8a8-2": _NOTHING,
}


def test_the_table_is_of_the_recipes_and_counts_them():
    assert set(REFUSED_FOR) == set(recipes())
    # Recipes by how many things are missing.
    assert Counter(map(len, REFUSED_FOR.values())) == {0: 42, 1: 2}
    assert set().union(*REFUSED_FOR.values()) == set(OPEN.values())


@pytest.mark.parametrize("name", REFUSED_FOR)
def test_a_recipe_starts_or_is_refused_for_what_is_not_supported_yet(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = recipes()[name]
    config = write_config(tmp_path / recipe.model, recipe)
    about = set()
    for role in recipe.servers:
        code = main(["--json", "--model-config", str(config), "--", *recipe.words(role, "MODEL")])
        captured = capsys.readouterr()
        assert code in (OK, CHECK_FAILED), captured.err
        (server,) = json.loads(captured.out)["servers"]
        assert code == (CHECK_FAILED if server["refusals"] else OK)
        about |= {refusal["about"] for refusal in server["refusals"]}
        assert server["command"][-1] == "--ascend-moe"
        # What takes the place of the exchange, or belongs to it, is gone.
        assert not {"--moe-a2a-backend", "--deepep-mode"} & set(server["command"])
        assert [name for name in server["environment"] if "DEEPEP" in name or "ZBAL" in name or "ZBCCL" in name] == []
        assert server["window"]["bytes"] > 0
    assert {OPEN[one] for one in about} == REFUSED_FOR[name]


@pytest.mark.parametrize("name", [name for name in REFUSED_FOR if "both" in recipes()[name].servers])
def test_what_was_adopted_is_adopted_without_a_change(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = recipes()[name]
    config = write_config(tmp_path / recipe.model, recipe)
    results = []
    words = recipe.words("both", "MODEL")
    for _ in range(2):
        main(["--json", "--model-config", str(config), "--", *words])
        (server,) = json.loads(capsys.readouterr().out)["servers"]
        words = [*(f"{name}={value}" for name, value in server["environment"].items()), *server["command"]]
        results.append(server)
    first, second = results
    assert second == first | {
        "changes": [],
        "window": first["window"] | {"in_place_of": second["window"]["in_place_of"]},
    }


def test_every_model_has_a_config():
    assert {recipe.model for recipe in recipes().values()} == set(MODELS)


def test_the_page_of_recipes_is_up_to_date():
    assert recipe_page.PAGE.read_text() == recipe_page.page(), "run `python -m tests.launch.adopt.recipe_page`"


def test_what_a_recipe_asks_for_and_where_it_has_run_is_told():
    told = {name: in_words(recipe) for name, recipe in recipes().items()}
    assert told["deepseek-r1-w4a8-1"] == (
        "on hosts and emulated NPUs: layers of DeepSeek-V3, data-parallel attention, prefill and decode apart, NEXTN,"
        " drafts of prefill and decode instances, W4A8"
    )
    assert "nowhere: its attention" in told["qwen3-next-80b-a3b-instruct-w8a8-1"]
