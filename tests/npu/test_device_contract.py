"""`torch.npu` of the emulated NPU has what SGLang uses, as the real torch_npu (whose sources are read) has it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.npu.device import graphs, module, streams
from tests.versions.npu_wheels import TORCH_NPU, definition, differences, parameters, wheel

# File of torch_npu.npu -> the module that stands for it, and what is compared.
SAME = {
    "graphs.py": (graphs, [
        "graph", "graph_pool_handle", "is_current_stream_capturing", "NPUGraph.capture_begin", "NPUGraph.capture_end",
        "NPUGraph.replay", "NPUGraph.reset", "NPUGraph.pool", "NPUGraph.update",
    ]),
    "streams.py": (streams, [
        "Stream", "Stream.wait_event", "Stream.wait_stream", "Stream.record_event", "Event.record", "Event.wait",
        "Event.elapsed_time", "ExternalEvent.record", "ExternalEvent.wait", "ExternalEvent.reset",
    ]),
    "utils.py": (module, ["synchronize", "set_device", "current_device"]),
}  # fmt: skip
PATHS = [(file, path) for file, (_, paths) in SAME.items() for path in paths]
USED_THROUGH_MODULE = {"graph_pool_handle", "is_current_stream_capturing", "config"}
"""What SGLang reaches by `torch.get_device_module()`, and a setting."""


@pytest.mark.parametrize(("file", "path"), PATHS, ids=[path for _, path in PATHS])
def test_names_parameters_and_defaults_are_those_of_torch_npu(request: pytest.FixtureRequest, file: str, path: str):
    own: ModuleType = SAME[file][0]
    found = definition(ast.parse(inspect.getsource(own)), path)
    if isinstance(found, ast.ClassDef):
        found = definition(found, "__init__") or definition(found, "__new__")
    assert found is not None
    sources = wheel(TORCH_NPU["torch 2.14"], request.config)
    assert differences(sources.tree(f"torch_npu/npu/{file}"), path, parameters(found)) == []


def test_sglang_uses_nothing_of_torch_npu_that_is_not_there():
    (folder,) = importlib.util.find_spec("sglang").submodule_search_locations
    used = {
        name
        for path in (Path(folder) / "srt").rglob("*.py")
        for name in re.findall(r"\b(?:torch|torch_npu)\.npu\.(\w+)", path.read_text())
    }
    there = {item.__name__ for item in module.SURFACE} | USED_THROUGH_MODULE
    assert used - there == set()
    assert {"NPUGraph", "current_stream", "mem_get_info"} <= used
