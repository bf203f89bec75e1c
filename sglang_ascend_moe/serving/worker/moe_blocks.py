"""The MoE blocks of SGLang's models that are known to be right around an exchange of rows.

A block surrounds an MoE layer: it routes rows, adds shared experts, and sums over ranks what is not complete. With an
exchange, rows come in scattered and results come out complete. A block that does not know this about the backend
`ascend_fuseep` sums or shards once too often, and its model would quietly answer something else.
"""

from typing import Any

from sglang_ascend_moe.errors import Unsupported

# Each is compared with stock SGLang, and with transformers, in tests/serving.
KNOWN_BLOCKS = (
    "DeepseekV2MoE",
    "Glm4MoeSparseMoeBlock",
    "MiniMaxM2MoE",
    "Qwen2MoeSparseMoeBlock",
    "Qwen3MoeSparseMoeBlock",
)
COMPARED_ARCHITECTURES = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Glm4MoeForCausalLM",
    "MiniMaxM2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Names that their configs have for the models whose blocks these are; others may use the same blocks."""


def refuse_unknown_blocks(model: Any, layer_class: type) -> None:
    """Raise `Unsupported` if a module of `model` holds an MoE layer (of `layer_class`) and is no known block.

    Blocks derived from a known one are known.
    """
    for module in model.modules():
        holds_layer = any(isinstance(child, layer_class) for child in module.children())
        if holds_layer and not any(ancestor.__name__ in KNOWN_BLOCKS for ancestor in type(module).__mro__):
            raise Unsupported(
                f"{type(model).__name__} has MoE blocks of the class {type(module).__name__}, which --ascend-moe was"
                f" never compared with: it may sum or shard their results wrongly. Serve the model without"
                f" --ascend-moe. Known blocks: {', '.join(KNOWN_BLOCKS)}"
            )
