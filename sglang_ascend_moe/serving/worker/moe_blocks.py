"""The MoE blocks of SGLang's models that are known to be right around an exchange of rows.

A block surrounds an MoE layer: it routes rows, adds shared experts, and sums over ranks what is not complete. With an
exchange, rows come in scattered and results come out complete. A block that does not know this about the backend
`ascend_fuseep` sums or shards once too often, and its model would quietly answer something else.
"""

import ast
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import Unsupported

# Each is compared with stock SGLang in tests/serving, of families there with the newest also with transformers.
KNOWN_BLOCKS: Mapping[str, Mapping[str, str]] = {
    "deepseek_v2.DeepseekV2MoE": {
        "0.5.18": "e220e6a944eba9d5",
        "0.5.21": "394c2044abe92943",
        "0.5.22": "287b47aecf31c26f",
        "0.5.23": "14d8c1e95b3c8a75",
    },
    "glm4_moe.Glm4MoeSparseMoeBlock": {
        "0.5.18": "0a2c928e7fd2ee0a",
        "0.5.21": "fb5aac29defce92e",
        "0.5.22": "794233e91df4b7a1",
        "0.5.23": "9dbd9d380e0b5ff1",
    },
    "gpt_oss.GptOssSparseMoeBlock": {"0.5.23": "e7c3361c3bc236c3"},
    "hunyuan.HunYuanSparseMoeBlock": {"0.5.23": "dc087b073b7b3be4"},
    "kimi_k3.KimiK3MoE": {"0.5.23": "cf8d9f98125118df"},
    "mimo_v2.MiMoV2MoE": {"0.5.23": "d2fbe04846fd2b16"},
    "minimax_m2.MiniMaxM2MoE": {
        "0.5.18": "9d279572e7db0a52",
        "0.5.21": "7985550636367281",
        "0.5.22": "800b6854938b3c31",
        "0.5.23": "c396b19e84321f74",
    },
    "qwen2_moe.Qwen2MoeSparseMoeBlock": {"0.5.23": "9f3c46bff3e79485"},
    "qwen3_moe.Qwen3MoeSparseMoeBlock": {
        "0.5.18": "37909b34ff1324f0",
        "0.5.21": "b45c0a82379eb149",
        "0.5.22": "3f5b09b8c3546249",
        "0.5.23": "6d76b5783020aedd",
    },
    "step3p5.Step3p5MoEMLP": {"0.5.23": "28fba0aa76e34a68"},
}
"""Class in `sglang.srt.models` -> version of SGLang with which it was compared -> digest of its source there."""

COMPARED_ARCHITECTURES = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
    "Glm4MoeForCausalLM",
    "GlmMoeDsaForCausalLM",
    "MiniMaxM2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Names that their configs have for the models whose blocks these are; others may use the same blocks."""

_MODELS = "sglang.srt.models."


def refuse_unknown_blocks(model: Any, layer_class: type) -> None:
    """Raise `Unsupported` if a module of `model` holds an MoE layer (of `layer_class`) and is no known block, or has
    another source than the one that was compared."""
    blocks = {type(module) for module in model.modules() if _holds(module, layer_class)}
    for block in sorted(blocks, key=name_of):
        compared = KNOWN_BLOCKS.get(name_of(block))
        if compared is None:
            known = ", ".join(name.rpartition(".")[2] for name in KNOWN_BLOCKS)
            raise Unsupported(
                f"{type(model).__name__} has MoE blocks of the class {block.__name__}, which --ascend-moe was never"
                f" compared with: it may sum or shard their results wrongly. Serve the model without --ascend-moe."
                f" Known blocks: {known}"
            )
        if source_digest(block) not in compared.values():
            raise Unsupported(
                f"{type(model).__name__} has MoE blocks of the class {block.__name__}, whose source is not the one that"
                f" --ascend-moe was compared with: it may sum or shard their results wrongly. Install SGLang"
                f" {' or '.join(compared)}, or serve the model without --ascend-moe"
            )


def _holds(module: Any, layer_class: type) -> bool:
    return any(isinstance(child, layer_class) for child in module.children())


def name_of(block: type) -> str:
    """The name of a block in `KNOWN_BLOCKS`."""
    return f"{block.__module__}.{block.__qualname__}".removeprefix(_MODELS)


def source_digest(block: type) -> str:
    """Of the source of a class of a module; empty if it has none."""
    try:
        # As it is in the file: `inspect.getsource` ends a class elsewhere in other versions of Python.
        return class_digest(Path(inspect.getfile(block)).read_text(), block.__name__)
    except (OSError, TypeError):
        return ""


def class_digest(module: str, name: str) -> str:
    """Of the source of a class in the text of its module; empty if it is not there."""
    for statement in ast.parse(module).body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            lines = module.splitlines(keepends=True)
            text = "".join(lines[statement.lineno - 1 : statement.end_lineno])
            return hashlib.sha256(text.encode()).hexdigest()[:16]
    return ""
