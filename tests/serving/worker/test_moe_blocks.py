"""A model whose MoE block was never compared, or has another source than the one that was, is refused by its name."""

import pkgutil

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.sglang_release import TESTED
from sglang_ascend_moe.serving.worker import moe_blocks
from sglang_ascend_moe.serving.worker.moe_blocks import KNOWN_BLOCKS, name_of, refuse_unknown_blocks, source_digest


class Layer(torch.nn.Module):
    """In place of SGLang's FusedMoE."""


class Block(torch.nn.Module):
    """An MoE block."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Layer()


class DerivedBlock(Block):
    """One that may do something else."""


def model_of(block: torch.nn.Module) -> torch.nn.Module:
    """A model of one decoder layer with this MoE block."""
    model, decoder = torch.nn.Module(), torch.nn.Module()
    decoder.mlp = block
    model.layers = torch.nn.ModuleList([decoder])
    return model


def know(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    monkeypatch.setattr(moe_blocks, "KNOWN_BLOCKS", {name_of(Block): {"1.2.3": "another", "1.2.4": digest}})


def test_a_block_that_was_compared_is_served(monkeypatch: pytest.MonkeyPatch):
    know(monkeypatch, source_digest(Block))
    refuse_unknown_blocks(model_of(Block()), Layer)


def test_a_block_with_another_source_is_refused_by_name_and_versions(monkeypatch: pytest.MonkeyPatch):
    know(monkeypatch, "changed")
    with pytest.raises(Unsupported, match=r"class Block, whose source is not the one .* Install SGLang 1.2.3 or 1.2.4"):
        refuse_unknown_blocks(model_of(Block()), Layer)


def test_a_block_derived_from_one_that_was_compared_was_not(monkeypatch: pytest.MonkeyPatch):
    know(monkeypatch, source_digest(Block))
    with pytest.raises(Unsupported, match="class DerivedBlock, which --ascend-moe was never compared with"):
        refuse_unknown_blocks(model_of(DerivedBlock()), Layer)


def test_an_unknown_block_is_refused_by_name_with_the_known_ones():
    with pytest.raises(Unsupported, match=r"class Block, which .* Known blocks: DeepseekV2MoE, "):
        refuse_unknown_blocks(model_of(Block()), Layer)


def test_a_class_without_source_has_no_digest():
    assert source_digest(type("Made", (Block,), {"__module__": "nowhere"})) == ""


def test_modules_without_an_moe_layer_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    know(monkeypatch, source_digest(Block))
    model = model_of(Block())
    model.layers.append(torch.nn.Linear(1, 1))
    refuse_unknown_blocks(model, Layer)


@pytest.mark.parametrize("name", KNOWN_BLOCKS)
def test_a_known_block_is_in_the_installed_sglang_as_it_was_compared(name: str):
    block = pkgutil.resolve_name(f"sglang.srt.models.{name}")
    assert name_of(block) == name
    assert KNOWN_BLOCKS[name][TESTED[-1]] == source_digest(block)
