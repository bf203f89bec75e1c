"""W4A8 experts of compressed-tensors are built from what config.json says. No NPU has run this."""

from typing import Any

import pytest

from sglang_ascend_moe.serving.npu.four_bit_settings import read_as_written
from tests.npu.operators.modules import install_operators


@pytest.fixture(scope="module")
def scheme_class() -> type[Any]:
    from sglang.srt.layers.moe.fused_moe_triton import layer as _  # noqa: F401 - the next cannot be imported first
    from sglang.srt.layers.quantization.compressed_tensors.schemes import (  # isort: skip
        NPUCompressedTensorsW4A8Int8DynamicMoE,
    )

    install_operators()
    return NPUCompressedTensorsW4A8Int8DynamicMoE


@pytest.mark.parametrize("clipped", [True, False])
def test_the_settings_of_a_checkpoint_are_found(scheme_class, clipped: bool):
    from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    settings = {
        "format": "int-quantized",
        "config_groups": {"group_1": {"activation_use_clip": clipped, "targets": []}},
    }
    config = CompressedTensorsConfig({}, [], "int-quantized", {}, [], config=settings)
    with pytest.raises(AttributeError, match="has no attribute 'get'"):
        scheme_class(config)
    for given in (config, settings):
        scheme = scheme_class.__new__(scheme_class)
        read_as_written(scheme_class.__init__, scheme, given)
        assert scheme.activation_use_clip == clipped
