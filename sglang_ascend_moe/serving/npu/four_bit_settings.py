"""W4A8 experts of compressed-tensors on an NPU. A hook of `npu_hooks`; no NPU has run this."""

from collections.abc import Callable
from typing import Any


def read_as_written(original: Callable[[Any, Any], None], scheme: Any, quantization_config: Any) -> None:
    """Around `NPUCompressedTensorsW4A8Int8DynamicMoE.__init__`: it asks for keys of config.json, and SGLang hands it
    what it has made of them."""
    original(scheme, getattr(quantization_config, "config", quantization_config))
