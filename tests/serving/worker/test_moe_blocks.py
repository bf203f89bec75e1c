"""A model whose MoE block is not known to be right around an exchange is refused by the name of the block."""

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.worker.moe_blocks import KNOWN_BLOCKS, refuse_unknown_blocks


class Layer(torch.nn.Module):
    """In place of SGLang's FusedMoE."""


def model_of(block_class: type[torch.nn.Module]) -> torch.nn.Module:
    """A model of one decoder layer with an MoE block of `block_class`."""
    model, decoder, block = torch.nn.Module(), torch.nn.Module(), block_class()
    block.experts = Layer()
    decoder.mlp = block
    model.layers = torch.nn.ModuleList([decoder])
    return model


def class_named(name: str, base: type = torch.nn.Module) -> type:
    return type(name, (base,), {})


@pytest.mark.parametrize("name", KNOWN_BLOCKS)
def test_a_known_block_and_one_derived_from_it_are_served(name: str):
    known = class_named(name)
    refuse_unknown_blocks(model_of(known), Layer)
    refuse_unknown_blocks(model_of(class_named("BlockOfTomorrow", known)), Layer)


def test_an_unknown_block_is_refused_by_name():
    with pytest.raises(Unsupported, match="MoE blocks of the class BlockOfTomorrow"):
        refuse_unknown_blocks(model_of(class_named("BlockOfTomorrow")), Layer)


def test_modules_without_an_moe_layer_do_not_matter():
    model = model_of(class_named(KNOWN_BLOCKS[0]))
    model.layers.append(torch.nn.Linear(1, 1))
    refuse_unknown_blocks(model, Layer)


def test_every_known_block_exists_in_the_installed_sglang():
    from sglang.srt.models import deepseek_v2, glm4_moe, minimax_m2, qwen2_moe, qwen3_moe

    modules = (deepseek_v2, glm4_moe, minimax_m2, qwen2_moe, qwen3_moe)
    assert [name for name in KNOWN_BLOCKS if not any(hasattr(module, name) for module in modules)] == []
