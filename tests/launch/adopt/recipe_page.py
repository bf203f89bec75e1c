"""The published recipes with `--ascend-moe`: `python -m tests.launch.adopt.recipe_page` writes examples/recipes.md."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from sglang_ascend_moe.launch.adopt.adoption import Adoption, adopt
from sglang_ascend_moe.launch.adopt.server_command import server_commands
from sglang_ascend_moe.launch.adopt.shell_script import split_assignments
from sglang_ascend_moe.launch.plan.moe_config import read_moe_shape
from sglang_ascend_moe.launch.plan.sizes import exactly
from tests.launch.adopt.recipes import Recipe, recipes, write_config
from tests.launch.adopt.tried_parts import in_words
from tests.packaging.source_tree import ROOT

PAGE = ROOT / "examples" / "recipes.md"
INTRODUCTION = """# Recipes

Published commands of SGLang for MoE models on Ascend A3, as `ascend-moe adopt` turns them into commands for
`--ascend-moe`; `python -m tests.launch.adopt.recipe_page` writes this page. MODEL is the folder of the checkpoint.
Hosts and ports of instances, and values of the variables that stay, are the deployment's own. A server of several nodes
is started on each, with its own `--node-rank`; NODE0 is an address of the first. A die is a rank.

**None has run on an NPU, or as a whole.** Which parts have run, with tiny models, stands below each.
All {all} start with this version. Windows are per rank.
"""


def adopted(recipe: Recipe, folder: Path) -> dict[str, Adoption]:
    """What `ascend-moe adopt` makes of each server, by role. folder: for the config of the model."""
    shape = read_moe_shape(write_config(folder / recipe.name, recipe), "--model-config")
    found = {}
    for role in recipe.servers:
        [server] = server_commands([split_assignments(recipe.words(role, "MODEL"))])
        found[role] = adopt(server, shape, "npu")
    return found


def page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        made = {name: adopted(recipe, Path(folder)) for name, recipe in recipes().items()}
    parts = [INTRODUCTION.format(all=len(made))]
    return "\n".join([*parts, *(_section(recipes()[name], servers) for name, servers in made.items())])


def _section(recipe: Recipe, servers: dict[str, Adoption]) -> str:
    kept = sorted({name for server in servers.values() for name in server.environment})
    lines = [f"## {recipe.name}\n", f"{recipe.model}, {recipe.weights}.\n"]
    lines.append(f"Has run {in_words(recipe)}.\n")
    lines += [line for role, server in servers.items() for line in (_sizes(role, server), _command(server))]
    if kept:
        lines.append(f"Variables that stay: {', '.join(f'`{name}`' for name in kept)}.\n")
    return "\n".join(lines)


def _sizes(role: str, adoption: Adoption) -> str:
    window = adoption.window
    if window is None:
        return f"`{role}`:\n"
    taken = "" if role == "decode" else f"; prefill takes {window.rounds_even} round(s) if ranks receive alike"
    if taken and window.rounds_worst > window.rounds_even:
        taken += f", {window.rounds_worst} at worst"
    return f"`{role}`: a window of {exactly(window.bytes)} for {window.tokens_per_rank} token(s) per rank{taken}.\n"


def _command(adoption: Adoption) -> str:
    words = [shlex.quote(word) for word in adoption.command]
    text = " ".join(f"\\\n  {word}" if word.startswith("--") else word for word in words)
    return f"```sh\n{text}\n```\n"


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
