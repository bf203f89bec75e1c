"""Redundant experts in a worker: what is counted for which layer, which weights are loaded, what is refused."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.options import Options, attach
from sglang_ascend_moe.serving.worker import expert_location

LAYER = SimpleNamespace(layer_id=3, is_draft=False)


class Recorder:
    """What is used of SGLang's recorder: counts by the layer that is current."""

    def __init__(self, *, recording: bool) -> None:
        self.recording = recording
        self.counted: list[tuple[int, list[int]]] = []
        self._current_layer_idx = SimpleNamespace(value=None)

    @contextmanager
    def with_current_layer(self, layer: int):
        assert self._current_layer_idx.value is None
        self._current_layer_idx.value = layer
        yield
        self._current_layer_idx.value = None

    def on_deepep_dispatch_low_latency(self, counts: torch.Tensor) -> None:
        self.counted.append((self._current_layer_idx.value, counts.tolist()))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """SGLang's settings of experts, in a process that was asked for `--ascend-moe`."""
    server_args = SimpleNamespace()
    attach(server_args, Options())
    moe = SimpleNamespace(ep_num_redundant_experts=0, expert_distribution_recorder_mode="stat")
    monkeypatch.setattr("sglang.srt.runtime_context.get_server_args", lambda: server_args)
    monkeypatch.setattr("sglang.srt.runtime_context.get_exec", lambda: SimpleNamespace(moe=moe))
    return moe


@pytest.mark.parametrize("in_model", [True, False], ids=["model-says-the-layer", "graph-replays-the-layer"])
def test_rows_are_counted_for_their_layer(monkeypatch: pytest.MonkeyPatch, in_model: bool):
    recorder = Recorder(recording=True)
    monkeypatch.setattr("sglang.srt.eplb.expert_distribution.get_global_expert_distribution_recorder", lambda: recorder)
    if in_model:
        with recorder.with_current_layer(LAYER.layer_id):
            expert_location.record_dispatch(LAYER, torch.tensor([4, 0]))
    else:
        expert_location.record_dispatch(LAYER, torch.tensor([4, 0]))
    assert recorder.counted == [(3, [4, 0])]


@pytest.mark.parametrize(
    ("recording", "is_draft"),
    [pytest.param(False, False, id="recorder-rests"), pytest.param(True, True, id="layer-of-a-draft-model")],
)
def test_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, recording: bool, is_draft: bool):
    recorder = Recorder(recording=recording)
    monkeypatch.setattr("sglang.srt.eplb.expert_distribution.get_global_expert_distribution_recorder", lambda: recorder)
    layer = SimpleNamespace(layer_id=LAYER.layer_id, is_draft=is_draft)
    expert_location.record_dispatch(layer, torch.tensor([4, 0]))
    assert recorder.counted == []


@pytest.mark.parametrize(
    ("asked_for", "is_draft", "records"),
    [
        pytest.param(True, True, False, id="draft-model"),
        pytest.param(True, False, True, id="model"),
        pytest.param(False, True, True, id="not-asked-for"),
    ],
)
def test_the_recorder_rests_while_a_draft_model_runs(monkeypatch, asked_for: bool, is_draft: bool, records: bool):
    recorder = type("Recorder", (), {"_recording": True, "recording": property(lambda own: own._recording)})()
    monkeypatch.setattr("sglang.srt.eplb.expert_distribution.get_global_expert_distribution_recorder", lambda: recorder)
    server_args = SimpleNamespace()
    if asked_for:
        attach(server_args, Options())
    runner = SimpleNamespace(server_args=server_args, is_draft_worker=is_draft)
    assert expert_location.record_no_drafts(lambda _runner: recorder.recording, runner) is records
    assert recorder.recording


@pytest.mark.parametrize("mode", ["stat", "stat_approx", "per_pass"])
def test_the_recorder_counts_rows_that_arrived_and_not_what_the_router_chose(settings, monkeypatch, mode: str):
    settings.expert_distribution_recorder_mode = mode
    monkeypatch.setattr("sglang.srt.eplb.expert_distribution.get_device", lambda: "cpu")
    metadata = SimpleNamespace(num_layers=2, num_physical_experts=6, num_local_physical_experts=3)
    gatherer = expert_location.gatherer(lambda *_: None, metadata, 1)
    gatherer.on_select_experts(0, torch.tensor([[0, 1]]))
    gatherer.on_deepep_dispatch_low_latency(1, torch.tensor([5, 0, 2]))
    assert gatherer.collect()["global_physical_count"].tolist() == [[0] * 6, [0, 0, 0, 5, 0, 2]]


def test_single_tokens_are_still_written_down_by_sglang(settings):
    settings.expert_distribution_recorder_mode = "per_token"
    assert expert_location.gatherer(lambda *arguments: arguments, "metadata", 1) == ("metadata", 1)


@pytest.mark.usefixtures("settings")
def test_weights_are_loaded_into_every_place_of_an_expert():
    metadata = SimpleNamespace(physical_to_logical_map_cpu=torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]]))
    places = [
        expert_location.all_places(lambda *_: [-1], metadata, layer, expert) for layer in (0, 1, 2) for expert in (0, 1)
    ]
    assert places == [[0, 3], [1, 2], [1], [0, 2, 3], [-1], [-1]]


def test_redundant_experts_of_a_model_without_a_placement_are_refused(settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sglang.srt.eplb.expert_location.get_global_expert_location_metadata", lambda: None)
    expert_location.agree_at_start([], [0], Options(), [])
    settings.ep_num_redundant_experts = 2
    with pytest.raises(Unsupported, match="--ep-num-redundant-experts"):
        expert_location.agree_at_start([], [0], Options(), [])


@pytest.mark.usefixtures("settings")
def test_a_placement_for_another_number_of_experts_is_refused_after_all_ranks_agreed_on_it(monkeypatch):
    metadata = SimpleNamespace(physical_to_logical_map_cpu=torch.tensor([[0, 1, 1, 0]]), num_logical_experts=2)
    monkeypatch.setattr("sglang.srt.eplb.expert_location.get_global_expert_location_metadata", lambda: metadata)
    monkeypatch.setattr("torch.distributed.new_group", lambda *_, **__: None)
    monkeypatch.setattr(expert_location, "_located", None)
    agreed = []
    monkeypatch.setattr(
        expert_location.PlacementAgreement, "agree", lambda _, layers, *__: agreed.append(layers) or len(layers)
    )
    layer = SimpleNamespace(layer_id=0, num_experts=6, uses_expert_location=True)
    with pytest.raises(Unsupported, match=r"4.*layer 0.*6"):
        expert_location.agree_at_start([layer], [0], Options(), [])
    assert agreed == [{0: [0, 1, 1, 0]}]
