"""What SGLang's NPU graph backend and the stand-in rely on is in the real torch_npu: names, defaults, rules.

The sources of two wheels from the registry are read. Nothing of them is imported, and no NPU is needed.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from functools import cache
from pathlib import Path

import pytest

from tests.graph_capture import npu_stand_in
from tests.versions.npu_wheels import TORCH_NPU, Parameter, Wheel, definition, differences, parameters, wheel

TORCH = {"torch 2.14": "torch==2.14.0.*", "torch 2.13": "torch==2.13.0.*"}
# File of torch_npu.npu -> what is relied on in it.
RELIED = {
    "graphs.py": [
        "graph", "graph_pool_handle", "is_current_stream_capturing", "NPUGraph", "NPUGraph.capture_begin",
        "NPUGraph.capture_end", "NPUGraph.replay", "NPUGraph.reset", "NPUGraph.pool", "NPUGraph.update",
        "graph.__enter__", "graph.__exit__",
    ],
    "utils.py": ["synchronize", "set_device", "current_device"],
    "streams.py": [
        "Stream", "Stream.wait_stream", "Event", "Event.record", "Event.wait", "Event.synchronize",
    ],
    "__init__.py": ["is_available"],
}  # fmt: skip
PATHS = [(file, path) for file, paths in RELIED.items() for path in paths]
SGLANG_BACKEND = "sglang/srt/hardware_backend/npu/graph_runner/npu_cudagraph_backend.py"


@pytest.fixture(scope="module", params=TORCH_NPU)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sources(version: str, request: pytest.FixtureRequest) -> Wheel:
    return wheel(TORCH_NPU[version], request.config)


@cache
def stand_in() -> ast.Module:
    return ast.parse(inspect.getsource(npu_stand_in))


def relied_parameters(path: str) -> list[Parameter]:
    found = definition(stand_in(), path)
    if isinstance(found, ast.ClassDef):
        found = definition(found, "__init__")
    return parameters(found)


def test_the_wheel_is_made_for_that_torch(sources: Wheel, version: str):
    assert TORCH[version] in sources.requirements


@pytest.mark.parametrize(("file", "path"), PATHS, ids=[path for _, path in PATHS])
def test_names_parameters_and_defaults_are_those_of_the_stand_in(sources: Wheel, file: str, path: str):
    assert differences(sources.tree(f"torch_npu/npu/{file}"), path, relied_parameters(path)) == []


def test_torch_npu_exports_what_the_stand_in_stands_for(sources: Wheel):
    exported = next(
        ast.literal_eval(node.value)
        for node in sources.tree("torch_npu/npu/__init__.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    # Not in __all__, but imported there from graphs.py.
    assert set(npu_stand_in.SURFACE) - set(exported) - {"is_current_stream_capturing"} == set()


RULES = {
    "an update needs a capture that was made for it": (
        "NPUGraph.update", "if not self.auto_dispatch_capture:\n        raise RuntimeError(",
    ),
    "captures are not made for updates unless asked": ("NPUGraph.__init__", "self.auto_dispatch_capture = False"),
    "the context says whether they are": (
        "graph.__init__", "self.npu_graph.auto_dispatch_capture = auto_dispatch_capture",
    ),
    "a capture waits for the device first": ("graph.__enter__", "torch.npu.synchronize()"),
    "the pool and the mode reach the capture": (
        "graph.__enter__", "self.npu_graph.capture_begin(*self.pool, capture_error_mode=self.capture_error_mode)",
    ),
    "one update serves all operators": (
        "_GraphDispatchMode.update_capture_record", "if len(cpu_update_input) == 1:",
    ),
    "a key that no operator knows is passed over": (
        "_GraphDispatchMode.update_capture_record",
        "for key in update_input:\n                if key in record.kwargs:\n"
        "                    record.kwargs[key] = update_input[key]\n            handler_cls",
    ),
    "operators are looked up by their name": (
        "_GraphDispatchMode.__torch_dispatch__", "_NPU_GRAPH_OP_HANDLERS.get(func.__name__)",
    ),
    "a replay waits for the update of an operator": ("_GraphDispatchMode.__torch_dispatch__", "event.wait(stream)"),
    "an operator without a handler is captured as it is": (
        "_GraphDispatchMode.__torch_dispatch__", "    return func(*args, **kwargs)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "text"), RULES.values(), ids=RULES)
def test_the_rules_of_the_stand_in_are_those_of_torch_npu(sources: Wheel, path: str, text: str):
    found = definition(sources.tree("torch_npu/npu/graphs.py"), path)
    assert found is not None
    assert text in ast.unparse(found)


def test_the_argument_that_sglang_binds_anew_belongs_to_a_handled_operator(sources: Wheel):
    tree = sources.tree("torch_npu/npu/_npugraph_handlers/ifa_handler.py")
    specifications = {
        name: {key for *_, key in updates}
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "UPDATE_SPECS"
        for name, updates in ast.literal_eval(node.value).items()
    }
    assert "actual_seq_lengths_kv" in specifications["npu_fused_infer_attention_score.out"]
    assert all("attention" in name for name in specifications)


def sglang_backend() -> ast.Module:
    packages = importlib.util.find_spec("sglang").submodule_search_locations
    return ast.parse((Path(packages[0]).parent / SGLANG_BACKEND).read_text())


def test_sglangs_backend_uses_nothing_that_the_stand_in_lacks():
    places = ("torch.npu", "self._device_module", "cuda_graph_runner.device_module")
    used = {
        node.attr
        for node in ast.walk(sglang_backend())
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in places
    }
    assert used - set(npu_stand_in.SURFACE) == set()
    assert {"NPUGraph", "graph", "synchronize"} <= used


def test_sglangs_backend_captures_with_keywords_that_exist():
    (call,) = [
        node
        for node in ast.walk(sglang_backend())
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "graph_ctx"
    ]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert keywords["auto_dispatch_capture"] == "True"
    assert set(keywords) <= {parameter.name for parameter in relied_parameters("graph")}


GRAPH = "class graph:\n    def __init__(self, npu_graph, pool=None, stream=None, auto_dispatch_capture=False): pass"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (GRAPH, False),
        (GRAPH.replace("class graph", "class Graph"), True),
        (GRAPH.replace("pool=None", "memory_pool=None"), True),
        (GRAPH.replace("auto_dispatch_capture=False", "auto_dispatch_capture=True"), True),
        (GRAPH.replace("pool=None, stream=None", "stream=None, pool=None"), True),
        (GRAPH.replace(", auto_dispatch_capture=False", ""), True),
        (GRAPH.replace("capture=False", "capture=False, another=None"), False),
    ],
    ids=["the same", "renamed", "parameter renamed", "default changed", "order changed", "parameter gone", "one more"],
)
def test_a_difference_is_found(source: str, found: bool):
    relied = relied_parameters("graph")[:4]
    assert bool(differences(ast.parse(source), "graph", relied)) == found
