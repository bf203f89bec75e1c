"""Published recipes of SGLang on Ascend A3: the command lines of their servers, and configs of their models."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE

FILE = Path(__file__).with_name("recipes.json")


class Config(NamedTuple):
    """What a model's config.json says: `inner` is the part that holds the sizes, empty for the whole."""

    architecture: str
    hidden: int
    experts: dict[str, int]
    topk: int
    context: int
    inner: str = ""

    def content(self) -> dict[str, Any]:
        sizes = {
            "hidden_size": self.hidden,
            "num_experts_per_tok": self.topk,
            "max_position_embeddings": self.context,
            "torch_dtype": "bfloat16",
            **self.experts,
        }
        named = {"architectures": [self.architecture]}
        return named | ({self.inner: sizes} if self.inner else sizes)


_ROUTED, _LOCAL, _EXPERTS = "n_routed_experts", "num_local_experts", "num_experts"
MODELS = {
    "deepseek-r1": Config("DeepseekV3ForCausalLM", 7168, {_ROUTED: 256}, 8, 163840),
    "deepseek-v3-2": Config("DeepseekV32ForCausalLM", 7168, {_ROUTED: 256}, 8, 163840),
    "glm5-1": Config("GlmMoeDsaForCausalLM", 6144, {_ROUTED: 256}, 8, 202752),
    "kimi-k2-6": Config("KimiK25ForConditionalGeneration", 7168, {_ROUTED: 384}, 8, 262144, "text_config"),
    "minimax-m2-5": Config("MiniMaxM2ForCausalLM", 3072, {_LOCAL: 256}, 8, 196608),
    "qwen3-235b-a22b": Config("Qwen3MoeForCausalLM", 4096, {_EXPERTS: 128}, 8, 40960),
    "qwen3-30b-a3b": Config("Qwen3MoeForCausalLM", 2048, {_EXPERTS: 128}, 8, 40960),
    "qwen3-5-397b": Config("Qwen3_5MoeForConditionalGeneration", 4096, {_EXPERTS: 512}, 10, 262144, "text_config"),
    "qwen3-6-35b-a3b": Config("Qwen3_5MoeForConditionalGeneration", 2048, {_EXPERTS: 256}, 8, 262144, "text_config"),
    "qwen3-next-80b-a3b-instruct": Config("Qwen3NextForCausalLM", 2048, {_EXPERTS: 512}, 10, 262144),
}
# What a deployment says of each node.
_FIRST_NODE = ["--node-rank", "0", "--dist-init-addr", "NODE0:5000"]
EXPERT_FORMATS = {"w8a8": "W8A8_DYNAMIC", "w4a8": "W4A8_DYNAMIC"}

# The recipes say which variables they set. Of those that say something in numbers, values that people use.
_VALUES = {
    "HCCL_BUFFSIZE": "1600",
    "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": "96",
    "DEEPEP_NORMAL_LONG_SEQ_ROUND": "16",
    "DEEPEP_NORMAL_LONG_SEQ_PER_ROUND_TOKENS": "4096",
    "SGLANG_ZBAL_LOCAL_MEM_SIZE": "60000",
    "SGLANG_NPU_FUSED_MOE_MODE": "2",
}


class Recipe(NamedTuple):
    """environment: of all servers. servers: flags by role (`prefill`, `decode` or `both`)."""

    name: str
    model: str
    weights: str
    environment: dict[str, str]
    servers: dict[str, list[str]]

    def words(self, role: str, model_path: str) -> list[str]:
        """The command of a server, as words."""
        assignments = [f"{name}={value}" for name, value in self.environment.items()]
        flags = [word for flag in self.servers[role] for word in _words(flag)]
        mode = [] if role == "both" else ["--disaggregation-mode", role]
        place = _FIRST_NODE if self.nodes(role) > 1 else []
        return [*assignments, "python", "-m", "sglang.launch_server", "--model-path", model_path, *mode, *flags, *place]

    def nodes(self, role: str) -> int:
        """Machines of a server."""
        [nodes] = [flag.partition(" ")[2] for flag in self.servers[role] if flag.startswith("--nnodes ")] or ["1"]
        return int(nodes)


def _words(flag: str) -> list[str]:
    name, _, value = flag.partition(" ")
    # JSON stands there as it is, not quoted for a shell.
    return [name, value] if value.startswith("{") else [name, *shlex.split(value)]


@cache
def recipes() -> dict[str, Recipe]:
    """By name."""
    found = [
        Recipe(
            name=recipe["name"],
            model=recipe["model"],
            weights=recipe["weights"],
            environment={name: _VALUES.get(name, "1") for name in recipe["environment"]},
            servers={server["role"]: server["flags"] for server in recipe["servers"]},
        )
        for recipe in json.loads(FILE.read_text())
    ]
    return {recipe.name: recipe for recipe in found}


def write_config(folder: Path, recipe: Recipe) -> Path:
    """The folder of the recipe's model, without weights: its config, and what modelslim says of them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODELS[recipe.model].content()))
    if recipe.weights in EXPERT_FORMATS:
        described = {"model.layers.4.mlp.experts.0.gate_proj.weight": EXPERT_FORMATS[recipe.weights]}
        (folder / MODELSLIM_FILE).write_text(json.dumps(described))
    return folder
