"""Which parts of a published recipe have run, each with tiny models, and where; no recipe has run as a whole."""

from __future__ import annotations

from enum import Enum

from tests.launch.adopt.recipes import Recipe


class Where(Enum):
    """Where a part has run."""

    BOTH = "on hosts and emulated NPUs"
    HOST = "on hosts only"
    NPU = "on emulated NPUs only"
    NOWHERE = "nowhere"


LAYERS = {
    "deepseek-r1": "DeepSeek-V3",
    "kimi-k2-6": "DeepSeek-V3",
    "minimax-m2-5": "MiniMax-M2",
    "qwen3-235b-a22b": "Qwen3-MoE",
    "qwen3-30b-a3b": "Qwen3-MoE",
}
SPARSE_LAYERS = {"deepseek-v3-2": "DeepSeek-V3.2", "glm5-1": "GLM-5"}
"""Models whose layers are those of a tiny model that has run, those with sparse attention where SGLang has it; of
others only the MoE blocks have, on hosts."""


def tried(recipe: Recipe) -> dict[Where, list[str]]:
    """Parts of the recipe by where they have run: tests/serving, tests/launch/disagg."""
    flags = [flag.partition(" ") for server in recipe.servers.values() for flag in server]
    names = {name for name, _, _ in flags}
    drafts = sorted({value for name, _, value in flags if name == "--speculative-algorithm"})
    apart = "both" not in recipe.servers
    known = LAYERS.get(recipe.model) or SPARSE_LAYERS.get(recipe.model)
    parts = [
        (f"layers of {known}", Where.NPU if recipe.model in SPARSE_LAYERS else Where.BOTH if known else None),
        ("its MoE blocks", None if known else Where.HOST),
        ("its attention", None if known else Where.NOWHERE),
        ("data-parallel attention", Where.BOTH if "--enable-dp-attention" in names else None),
        ("prefill and decode apart", Where.BOTH if apart else None),
        ("several nodes, on one machine", Where.BOTH if max(map(recipe.nodes, recipe.servers)) > 1 else None),
        ("stages of a pipeline", Where.BOTH if "--pp-size" in names else None),
        ("texts divided among ranks", Where.BOTH if "--attn-cp-size" in names else None),
        *((algorithm, Where.BOTH) for algorithm in drafts),
        ("drafts of prefill and decode instances", Where.BOTH if apart and drafts else None),
        (recipe.weights.upper(), Where.BOTH),
    ]
    return {where: found for where in Where if (found := [part for part, ran in parts if ran is where])}


def in_words(recipe: Recipe) -> str:
    """A sentence for its page."""
    return "; ".join(f"{where.value}: {', '.join(parts)}" for where, parts in tried(recipe).items())
