"""The capture guard refuses what a graph would fail on or freeze, names the line, and refuses nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from sglang_ascend_moe import CaptureRefused, InvalidInput, launches
from sglang_ascend_moe.graph_capture import check
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.findings import COPY_BETWEEN_DEVICES, Finding, broken_rule
from sglang_ascend_moe.graph_capture.guard import DryRuns
from sglang_ascend_moe.graph_capture.tape import record
from sglang_ascend_moe.graph_capture.trees import leaves
from tests.graph_capture import refused_steps
from tests.graph_capture.refused_steps import AT_ONCE, IDS, REFUSED, Refused, X


@pytest.fixture(scope="module", autouse=True)
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def found_in(step: Callable[[], object], into_launches: bool = False) -> list[Finding]:
    runs = DryRuns(step, 2, into_launches=into_launches)
    for _ in range(runs.total):
        runs.run()
    return runs.findings


@pytest.fixture(params=[torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda mode: mode.__name__)
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """SGLang runs a model in the first or the second; composite operators show themselves differently in them."""
    with request.param():
        yield


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("case", [*REFUSED, *AT_ONCE], ids=lambda case: case.title)
def test_a_step_that_cannot_be_captured_is_refused_by_operator_and_line(case: Refused):
    with pytest.raises(CaptureRefused) as refusal:
        check(case.step)
    message = str(refusal.value)
    assert f"at {refused_steps.__file__}:{case.line} " in message
    (finding,) = [part for part in message.split("graph: ", 1)[1].split("; ") if f":{case.line} " in part][:1]
    assert case.operator in finding
    assert case.words in finding


def test_every_refusal_says_what_to_do():
    for case in REFUSED:
        for finding in found_in(case.step):
            assert len(finding.remedy.split()) >= 5, case.title


STATE = torch.zeros(8, 4)
CACHE: list[torch.Tensor] = []


def lazily_made_cache() -> torch.Tensor:
    if not CACHE:
        CACHE.append(torch.arange(4.0).cos())
        CACHE[0][0].item()
    return X * CACHE[0]


SAFE: dict[str, Callable[[], object]] = {
    "attention": lambda: F.scaled_dot_product_attention(X[None], X[None], X[None], attn_mask=torch.ones(3, 3).bool()),
    "causal attention": lambda: F.scaled_dot_product_attention(X[None], X[None], X[None], is_causal=True),
    "dropout that is off": lambda: F.dropout(X, 0.5, training=False),
    "views": lambda: X.t().reshape(2, 6)[:, 1:3].unsqueeze(0).expand(2, 2, 2).contiguous(),
    "index by positions": lambda: X[IDS],
    "one value where a mask is": lambda: torch.zeros(3, 4).masked_fill_(X > 0, 1).__setitem__(X > 0, 2.0),
    "index_copy_ into state": lambda: STATE.index_copy_(0, IDS[:2], X[:2]),
    "in place": lambda: STATE.add_(1).mul_(0.5),
    "embedding": lambda: F.embedding(IDS, X),
    "topk": lambda: torch.topk(X.softmax(dim=-1), 2),
    "sort": lambda: X.argsort(dim=-1),
    "linear and norm": lambda: F.layer_norm(F.linear(X, X), (3,)),
    "where": lambda: torch.where(X > 0, X, 0.0),
    "repeat_interleave of known size": lambda: torch.repeat_interleave(X, IDS, dim=0, output_size=2),
    "nonzero of known size": lambda: torch.nonzero_static(X > 0, size=5),
    "scatter": lambda: torch.zeros(4).scatter_add_(0, IDS, torch.ones(3)),
    "one_hot of known size": lambda: F.one_hot(IDS, 4) if torch.is_inference_mode_enabled() else None,
    "index by positions and a list": lambda: X[IDS, [0, 1, 3]],
    "lists of tensors": lambda: torch.cat([torch.stack([X[0], X[1]]), X], dim=0),
    "constants": lambda: X[0] + torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.arange(4),
    "NaN as a scalar": lambda: torch.full((2,), float("nan")),
    "shapes and strides": lambda: X.new_zeros(X.shape[0] * X.stride(0)).view(len(X), -1),
    "cache that the first run fills": lazily_made_cache,
    "nothing at all": lambda: None,
}


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("step", SAFE.values(), ids=SAFE)
def test_a_step_that_can_be_captured_is_not_refused(step: Callable[[], object]):
    CACHE.clear()
    check(step, passes=3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("step", SAFE.values(), ids=SAFE)
def test_a_step_that_can_be_captured_is_recorded_and_replayed(step: Callable[[], object], mode: Callable[[], Any]):
    def again(run: Callable[[], object]) -> list[Any]:
        STATE.zero_()
        return [item.clone() if isinstance(item, torch.Tensor) else item for item in leaves(run())]

    with mode():
        CACHE.clear()
        wanted = again(step)
        tape = record(step, Arena())
        for _ in range(2):
            torch.testing.assert_close(again(tape.replay), wanted, rtol=0, atol=0, equal_nan=True)


def test_a_value_that_reaches_python_around_torch_is_seen_when_inputs_vary():
    counts = torch.zeros(1, dtype=torch.int64)
    around = counts.numpy()

    def step() -> torch.Tensor:
        return X + int(around[0])

    check(step)
    with pytest.raises(CaptureRefused, match="got other=2 after 1"):
        check(step, vary=lambda: counts.add_(1))


def test_all_findings_are_reported_after_the_last_run_and_many_are_counted():
    runs = []

    def step() -> None:
        X.sum().item()
        torch.rand(1)
        exec(compile(12 * "x.tolist()\n", "generated.py", "exec"), {"x": X})
        runs.append(None)

    with pytest.raises(CaptureRefused, match=r"Tensor\.item.*aten\.rand.*generated\.py:1 .*; and 6 more$"):
        check(step, passes=4)
    assert len(runs) == 5


def test_the_step_runs_once_to_settle_and_then_as_often_as_is_asked():
    runs = []
    check(lambda: runs.append(None), passes=3)
    assert len(runs) == 4


def test_a_single_run_cannot_be_compared():
    with pytest.raises(InvalidInput, match="passes=1"):
        check(lambda: None, passes=1)


def test_what_the_step_raises_is_passed_on_and_the_watch_ends():
    def step() -> None:
        raise KeyError("of the step")

    with pytest.raises(KeyError, match="of the step"):
        check(step)
    assert X.sum().item() == float(X.sum())


def test_a_tensor_made_from_python_values_on_a_device_is_a_copy_from_the_host():
    # `torch.tensor(values, device=...)` shows itself to a dispatch mode in this way only; for meta it does not at all.
    lift = torch.ops.aten.lift_fresh.default
    assert broken_rule(lift, {"self": torch.empty(1, device="meta")}) == COPY_BETWEEN_DEVICES
    assert broken_rule(lift, {"self": torch.empty(1)}) is None


def test_launches_are_looked_into_where_the_graph_has_to_capture_what_they_do():
    out = torch.zeros(3, 4)

    def bind(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
        return lambda: y.fill_(x.sum().item())

    def step() -> None:
        launches.launch(bind, [X], [out])

    assert found_in(step) == []
    assert {finding.operator for finding in found_in(step, into_launches=True)} >= {"Tensor.item"}


def test_torchs_own_files_are_not_named():
    findings = [finding for case in REFUSED for finding in found_in(case.step)]
    assert {Path(finding.file).name for finding in findings} == {Path(refused_steps.__file__).name}
