"""Decode graphs on Ascend, without an NPU: SGLang's unmodified NPU graph backend over a stand-in for `torch.npu`.

SGLang is imported inside the tests only, before their ranks are forked.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ascend_moe import CaptureRefused, launches
from sglang_ascend_moe.exchange.observation import graphs
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.serving.options import Options, attach
from sglang_ascend_moe.serving.worker import layer
from tests.exchange.pool import Rank
from tests.graph_capture.runners.ascend_ranks import EXPERTS, HIDDEN, MOST, Setting, ascend_setting, on_ascend


@pytest.fixture
def run_on_ascend(fresh_pool) -> Callable[..., list[Any]]:
    """Runs a program on two ranks that have what they need of SGLang already."""
    import sglang.srt.hardware_backend.npu.graph_runner.npu_graph_runner
    import sglang.srt.model_executor.model_runner_components.cuda_graph_setup  # noqa: F401

    return lambda program, *arguments: fresh_pool(2).run(program, *arguments)


def batches(seed: int, requests: int) -> tuple[torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(requests, HIDDEN, generator=generator)
    return x, torch.randint(1, 50, (requests,), generator=generator).tolist()


def replay_and_compare(rank: Rank) -> dict[str, Any]:
    with ascend_setting(rank) as setting:
        setting.runner._capture()
        captured = setting.exchange.epoch
        differences = []
        # Every pair of buckets, padded and full, and one rank eager beside a replay.
        for number, (own, other) in enumerate((a, b) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4)):
            requests = (own, other)[rank.rank]
            x, lengths = batches(10 * number + rank.rank, requests)
            bucket = 2 if requests <= 2 else MOST
            expected = setting.eager(x, lengths, bucket)
            if number % 4 == 1 and rank.rank == 0:
                found = setting.eager(x, lengths, bucket)
            else:
                found = setting.replay(x, lengths).clone()
            differences.append(float((found - expected).abs().max()))
        return {
            "graphs": sorted(key.size for key in setting.backend._graphs),
            "warmed": setting.runner.warmed_at,
            "captured": captured,
            "replayed": setting.exchange.epoch - captured,
            "state": (graphs.state, graphs.buckets),
            "counted": graphs.replays,
            "differences": differences,
        }


def test_replays_of_the_unmodified_backend_give_the_bits_of_eager_steps(run_on_ascend):
    first, second = run_on_ascend(replay_and_compare)
    # Every fourth of the 16 steps was eager on rank 0.
    assert (first.pop("counted"), second.pop("counted")) == (12, 16)
    assert first == second
    assert first["state"] == ("npu graph", [2, MOST])
    assert first["graphs"] == [2, MOST]
    assert first["warmed"] == 1
    # Of each bucket: a run to settle, two that are watched, with each launch taken twice, two warm-ups, the capture.
    assert first["captured"] == 1 + 2 * (2 + 2 * 2 + 2 + 1)
    assert first["replayed"] == 2 * 16
    assert first["differences"] == [0.0] * 16


def replay_without_updates(rank: Rank) -> dict[str, Any]:
    with ascend_setting(rank) as setting:
        setting.runner.warmup()
        setting.prepare()
        model = setting.models[2]
        x, weights = torch.zeros(2, HIDDEN), torch.ones(2, 2)
        ids = torch.tensor([[0, 3], [2, 1]])
        mixed = torch.zeros(2, HIDDEN)

        def step() -> torch.Tensor:
            launches.launch(model._bind, [x, ids, weights], [mixed])
            return mixed + 1

        setting.patch.setattr(setting.npu.NPUGraph, "update", None)
        setting.backend.capture_one(setting.key(2), step)
        before = setting.exchange.epoch
        results = []
        for value in (1.0, 2.0, 3.0):
            x.fill_(value)
            results.append(setting.backend.replay(setting.key(2), None).unique().tolist())
        return {"epochs": setting.exchange.epoch - before, "results": results}


def test_a_captured_exchange_advances_its_epochs_and_needs_no_update(run_on_ascend):
    # Two experts double each row, with weights of 1.
    assert run_on_ascend(replay_without_updates) == [{"epochs": 3, "results": [[5.0], [9.0], [13.0]]}] * 2


class RunnerCore:
    """In the place of SGLang's Ascend runner: like it, it learns from a tensor which rows belong to which expert, and
    `product`, its last one, has a place for the result."""

    def __init__(self, product: Any) -> None:
        self._product = product

    def run(self, taken: Any, weights: Any, _state: dict[str, Any]) -> None:
        ends = taken.expert_tokens.cumsum(0)
        expert = (torch.arange(len(taken.hidden_states))[:, None] >= ends).sum(dim=1).clamp(max=len(ends) - 1)
        self._product.place.copy_(taken.hidden_states * weights.w13_weight[expert])


def replay_the_layer_of_npus(rank: Rank) -> list[float]:
    from sglang_ascend_moe.serving.npu.experts import compute

    with ascend_setting(rank) as setting:
        weights = torch.arange(1.0, 1 + EXPERTS).view(2, EXPERTS // 2, 1)[rank.rank]
        product = SimpleNamespace(place=None)
        moe = SimpleNamespace(
            layer_id=0, runner=SimpleNamespace(runner_core=RunnerCore(product)), w13_weight=weights, w2_weight=weights,
            w2_kernel=SimpleNamespace(matmul=product),
        )  # fmt: skip

        def experts(rows: ExpertRows) -> None:
            # As a ticket says it of a launch that is captured, whose counts the host does not know.
            captured = SimpleNamespace(at_most=len(rows.rows))
            compute(moe, rows._replace(ticket=captured))

        for model in setting.models.values():
            model.experts = experts
        setting.runner._capture()
        differences = []
        for number in range(8):
            x, lengths = batches(10 * number + rank.rank, 1 + (number + rank.rank) % MOST)
            expected = setting.eager(x, lengths, 2 if len(x) <= 2 else MOST)
            differences.append(float((setting.replay(x, lengths) - expected).abs().max()))
        return differences


def test_the_layer_as_npus_compute_it_passes_the_guard_and_replays_with_other_counts(run_on_ascend):
    assert run_on_ascend(replay_the_layer_of_npus) == [[0.0] * 8] * 2


def refusals_of(rank: Rank, changes: dict[str, Callable[[Setting, Rank], None]]) -> dict[str, tuple[str, int]]:
    """Of each change: the words with which a capture of the changed step is refused, and the graphs that it left."""
    refusals = {}
    with on_ascend(rank) as place:
        for name, change in changes.items():
            with place.setting() as setting:
                change(setting, rank)
                with pytest.raises(CaptureRefused) as refused:
                    setting.runner._capture()
                refusals[name] = str(refused.value), len(setting.backend._graphs)
    return refusals


def read_on_one_rank(setting: Setting, rank: Rank) -> None:
    model = setting.models[MOST]
    original = model.step

    def step() -> Any:
        if rank.rank == 1:
            model.x.sum().item()  # here
        return original()

    model.step = step


def read_counts_in_the_experts(setting: Setting, _rank: Rank) -> None:
    def experts(rows: ExpertRows) -> None:
        for count in rows.counts.tolist():  # here
            torch.mul(rows.rows[:count], 2, out=rows.out[:count])

    setting.models[MOST].experts = experts


def pass_the_epoch_from_the_host(setting: Setting, _rank: Rank) -> None:
    model = setting.models[MOST]
    original = model.step

    def step() -> Any:
        model.x.add_(setting.exchange.epoch)  # here
        return original()

    model.step = step


def capture_other_batches(setting: Setting, rank: Rank) -> None:
    setting.runner.capture_bs = [2, MOST][: 1 + rank.rank]


def leave_the_window_cold(setting: Setting, _rank: Rank) -> None:
    setting.patch.setattr("sglang_ascend_moe.graph_capture.runners.npu_runner.warm", lambda *_: None)


def line_of(change: Callable[..., None]) -> str:
    lines, first = inspect.getsourcelines(change)
    (found,) = [number for number, text in enumerate(lines) if text.rstrip().endswith("# here")]
    return f"test_npu_runner.py:{first + found} "


REFUSALS: dict[str, tuple[Callable[..., None], list[str]]] = {
    "a rank reads a value": (
        read_on_one_rank,
        ["the decode graph of 4 requests", "rank 1: Tensor.item at ", line_of(read_on_one_rank)],
    ),
    "experts read their counts": (
        read_counts_in_the_experts,
        ["rank 0: Tensor.tolist at ", line_of(read_counts_in_the_experts)],
    ),
    "the host passes the epoch": (
        pass_the_epoch_from_the_host,
        ["got other=", line_of(pass_the_epoch_from_the_host)],
    ),
    "other batches on each rank": (capture_other_batches, ["rank 0 batches of 2, rank 1 batches of 2, 4"]),
    "a window that nobody has used": (leave_the_window_cold, ["a window has not been used before the first capture"]),
}


def test_what_must_not_be_captured_is_refused_on_every_rank_before_the_first_capture(run_on_ascend):
    first, second = run_on_ascend(refusals_of, {name: change for name, (change, _) in REFUSALS.items()})
    assert first == second
    for name, (_, words) in REFUSALS.items():
        message, graphs = first[name]
        assert graphs == 0, name
        assert [word for word in words if word not in message] == [], name


def capture_without_our_layer(rank: Rank) -> int:
    with ascend_setting(rank) as setting:
        setting.patch.setattr(layer, "_serving", None)
        x = torch.zeros(2)
        setting.backend.capture_one(setting.key(2), lambda: x + 1)
        return len(setting.backend._graphs)


def test_a_server_without_our_layer_captures_as_sglang_does(run_on_ascend):
    assert run_on_ascend(capture_without_our_layer) == [1, 1]


def decode_graph(options: Options | None, outcome: Exception | str | None, rank: int = 0) -> Any:
    """What SGLang gets from `capture_decode_graph` when its own function raises or returns `outcome`."""
    from sglang_ascend_moe.graph_capture.runners.npu_runner import capture_decode

    model_runner = SimpleNamespace(server_args=SimpleNamespace())
    if options is not None:
        attach(model_runner.server_args, options)

    def original(**_: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(runner=outcome)

    from sglang.srt.runtime_context import get_parallel

    with get_parallel().override(tp_rank=rank):
        return capture_decode(original, model_runner=model_runner).runner


REFUSED = CaptureRefused("the guard's words")


def test_a_step_that_cannot_be_captured_is_served_eagerly_with_one_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert [decode_graph(Options(), REFUSED, rank) for rank in range(2)] == [None, None]
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("sglang_ascend_moe")]
    assert warning == "Decode runs without graphs, slower and with the same results: the guard's words"


@pytest.mark.parametrize("outcome", [REFUSED, None], ids=["refused", "switched off"])
def test_a_server_that_requires_graphs_does_not_serve_without(outcome):
    with pytest.raises(CaptureRefused, match="--ascend-moe-require-graphs: "):
        decode_graph(Options(require_graphs=True), outcome)


@pytest.mark.parametrize("options", [None, Options(), Options(require_graphs=True)], ids=["stock", "ours", "required"])
def test_a_runner_that_has_captured_is_passed_on(options):
    assert decode_graph(options, "the runner") == "the runner"


def test_without_our_layer_a_failure_of_capture_is_sglangs_own():
    with pytest.raises(CaptureRefused, match="the guard's words"):
        decode_graph(None, REFUSED)


def draft_graphs(options: Options | None, rank: int = 0) -> None:
    """What SGLang's draft worker gets when its capture is refused."""
    from sglang.srt.runtime_context import get_parallel

    from sglang_ascend_moe.graph_capture.runners.npu_runner import capture_drafts

    worker = SimpleNamespace(server_args=SimpleNamespace())
    if options is not None:
        attach(worker.server_args, options)

    def original(_worker: Any) -> None:
        raise REFUSED

    with get_parallel().override(tp_rank=rank):
        capture_drafts(original, worker)


def test_drafts_that_cannot_be_captured_are_made_eagerly_with_one_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        for rank in range(2):
            draft_graphs(Options(), rank)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("sglang_ascend_moe")]
    assert warning == "Drafts are made without graphs, slower and with the same results: the guard's words"


@pytest.mark.parametrize("options", [None, Options(require_graphs=True)], ids=["stock", "required"])
def test_refused_drafts_end_a_server_that_requires_graphs_and_are_sglangs_own_without_our_layer(options):
    with pytest.raises(CaptureRefused, match=r"(--ascend-moe-require-graphs: )?the guard's words"):
        draft_graphs(options)


def test_a_replay_of_drafts_is_compared_between_ranks_as_the_forward_passes_that_it_stands_for(monkeypatch):
    from sglang_ascend_moe.graph_capture.runners import npu_runner
    from sglang_ascend_moe.serving.worker import lockstep

    passes: list[dict[str, bool]] = []
    step = SimpleNamespace(pass_forward=lambda **kind: passes.append(kind))
    monkeypatch.setattr(lockstep, "_lockstep", step)
    runner = SimpleNamespace(speculative_num_steps=3, model_runner=SimpleNamespace(is_draft_worker=True))
    batch, before = SimpleNamespace(is_extend_in_batch=False), graphs.replays
    draft = {"drafts": True, "prefill": False}
    assert npu_runner.replay_drafts(lambda *_: "drafted", runner, batch) == "drafted"
    assert passes == [draft, draft]
    assert npu_runner.replay_draft_extend(lambda *given: given[2], runner, batch, "index") == "index"
    assert passes == [draft] * 3
    assert graphs.replays == before + 2
