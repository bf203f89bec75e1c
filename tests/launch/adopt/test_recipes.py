"""Published recipes through `ascend-moe adopt`: each would start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.adopt.adopt_command import main
from sglang_ascend_moe.serving.launcher.exit_codes import OK
from tests.launch.adopt import recipe_page
from tests.launch.adopt.recipes import MODELS, recipes, write_config
from tests.launch.adopt.tried_parts import in_words


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_starts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = recipes()[name]
    config = write_config(tmp_path / recipe.model, recipe)
    for role in recipe.servers:
        code = main(["--json", "--model-config", str(config), "--", *recipe.words(role, "MODEL")])
        captured = capsys.readouterr()
        assert code == OK, captured.err
        (server,) = json.loads(captured.out)["servers"]
        assert server["refusals"] == []
        assert server["command"][-1] == "--ascend-moe"
        # What takes the place of the exchange, or belongs to it, is gone.
        assert not {"--moe-a2a-backend", "--deepep-mode"} & set(server["command"])
        assert [name for name in server["environment"] if "DEEPEP" in name or "ZBAL" in name or "ZBCCL" in name] == []
        assert server["window"]["bytes"] > 0


@pytest.mark.parametrize("name", [name for name, recipe in recipes().items() if "both" in recipe.servers])
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
