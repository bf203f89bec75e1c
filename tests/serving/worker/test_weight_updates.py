"""Weights that one rank cannot take are refused by all, and end none."""

import socket
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from sglang_ascend_moe.errors import InvalidInput, PeerLost
from sglang_ascend_moe.serving.worker import layer, weight_updates


class Updater(SimpleNamespace):
    """SGLang's, of a model that was loaded from `before`."""

    def __init__(self) -> None:
        super().__init__(model_config=SimpleNamespace(model_path="before"))
        self.loads: list[tuple[str, str]] = []
        self.captures = 0
        self.destroyed: list[str] = []

    def destroy_weights_update_group(self, group_name: str) -> None:
        self.destroyed.append(group_name)

    def recapture_cuda_graph(self) -> None:
        self.captures += 1


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the other rank of two says of its own part, in place of a group of processes."""
    told = SimpleNamespace(problem=None, waits=[])

    def gather(said: list[Any], own: Any, group: object) -> None:
        assert group == "group"
        said[:] = [own, told.problem]

    runtime = SimpleNamespace(
        get_parallel=lambda: SimpleNamespace(tp_group=SimpleNamespace(cpu_group="group")),
        get_model=lambda: SimpleNamespace(load_format="auto"),
    )
    platform = SimpleNamespace(is_out_of_tree=lambda: True, capabilities=SimpleNamespace(graph_capture=True))
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", runtime)
    monkeypatch.setitem(sys.modules, "sglang.srt.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setattr(weight_updates.dist, "get_world_size", lambda _group: 2)
    monkeypatch.setattr(weight_updates.dist, "all_gather_object", gather)
    monkeypatch.setattr(weight_updates.dist, "monitored_barrier", lambda _group, timeout: told.waits.append(timeout))
    monkeypatch.setattr(layer, "serving", lambda: "serving")
    return told


def load(updater: Updater, model_path: str, load_format: str, *_: object) -> tuple[bool, str]:
    """As SGLang: the path is the model's own from here on. `broken` raises, `missing` cannot be read."""
    updater.model_config.model_path = model_path
    updater.loads.append((model_path, load_format))
    if model_path == "broken":
        raise KeyError("layers.0")
    return model_path != "missing", model_path


def test_weights_that_every_rank_loads_are_served():
    updater = Updater()
    assert weight_updates.update_from_disk(load, updater, "after", "pt") == (True, "after")
    assert updater.loads == [("after", "pt")]
    assert updater.captures == 0


def test_graphs_are_captured_again_by_all_ranks_or_none(others):
    updater = Updater()
    assert weight_updates.update_from_disk(load, updater, "after", "pt", None, True) == (True, "after")
    assert updater.captures == 1
    others.problem = "no memory"
    assert not weight_updates.update_from_disk(load, updater, "after", "pt", None, True)[0]
    assert updater.captures == 1


@pytest.mark.parametrize(
    ("path", "other", "said"),
    [
        pytest.param(
            "broken", None, "rank 0: the weights cannot be loaded: KeyError: 'layers.0'", id="this one raises"
        ),
        pytest.param("missing", None, "rank 0: missing", id="this one finds nothing"),
        pytest.param("after", "no memory", "rank 1: no memory", id="the other one"),
        pytest.param("missing", "no memory", "rank 0: missing; rank 1: no memory", id="both"),
    ],
)
def test_all_ranks_go_back_if_one_cannot_load(others, path, other, said):
    others.problem = other
    updater = Updater()
    assert weight_updates.update_from_disk(load, updater, path, "pt") == (False, said)
    assert updater.loads == [(path, "pt"), ("before", "auto")]
    assert updater.model_config.model_path == "before"


def test_a_rank_that_cannot_go_back_ends():
    updater = Updater()
    updater.model_config.model_path = "missing"
    with pytest.raises(InvalidInput, match="missing must still have the weights"):
        weight_updates.update_from_disk(load, updater, "broken", "pt")


def test_a_failed_exchange_is_no_fault_of_the_weights():
    def exchange(*_: object) -> tuple[bool, str]:
        raise PeerLost("rank 1 has ended", rank=1)

    with pytest.raises(PeerLost):
        weight_updates.update_from_disk(exchange, Updater(), "after", "pt")


def update(_updater: object, named_tensors: Any, load_format: str | None) -> tuple[bool, str]:
    if load_format is not None:
        raise NotImplementedError(load_format)
    return True, f"loaded {named_tensors}"


def test_tensors_that_cannot_be_read_or_loaded_are_answered(others):
    def unreadable(*_: object) -> Any:
        raise EOFError("ran out of input")

    found = weight_updates.read_tensors(unreadable, "worker", [b""])
    assert weight_updates.update_from_tensors(update, "updater", found) == (
        False,
        "rank 0: the tensors cannot be read: EOFError: ran out of input",
    )
    assert weight_updates.update_from_tensors(update, "updater", [], "surprise") == (
        False,
        "rank 0: the weights cannot be loaded: NotImplementedError: surprise",
    )
    assert weight_updates.update_from_tensors(update, "updater", ["w"]) == (True, "loaded ['w']")
    others.problem = "no"
    assert weight_updates.update_from_tensors(update, "updater", ["w"]) == (False, "rank 1: no")


LONGEST_JOIN = timedelta(seconds=2 * weight_updates.GROUP_SECONDS)


@pytest.mark.parametrize(
    ("own", "other", "outcome", "destroyed"),
    [
        pytest.param((True, "in"), None, (True, "in"), [], id="both join"),
        pytest.param((True, "in"), "out", (False, "rank 1: out"), ["weights"], id="the other does not"),
        pytest.param((False, "out"), None, (False, "rank 0: out"), [], id="this one does not"),
    ],
)
def test_all_ranks_join_a_group_or_none_however_long_one_takes(others, own, other, outcome, destroyed):
    others.problem = other
    updater = Updater()
    asked = ("127.0.0.1", 1, 1, 3, "weights", "gloo")
    assert (
        weight_updates.join_group(lambda _updater, *given: own if given == asked else None, updater, *asked) == outcome
    )
    assert updater.destroyed == destroyed
    assert len(others.waits) == 1
    assert others.waits[0] > LONGEST_JOIN


def test_all_ranks_receive_weights_or_none(others):
    def receive(_updater: object, *, names: list[str]) -> list[str]:
        if not names:
            raise RuntimeError("the first rank is gone")
        return names

    assert weight_updates.receive_from_group(receive, "updater", names=["w"]) == ["w"]
    with pytest.raises(InvalidInput, match="rank 0: RuntimeError: the first rank is gone"):
        weight_updates.receive_from_group(receive, "updater", names=[])
    others.problem = "no"
    with pytest.raises(InvalidInput, match="rank 1: no"):
        weight_updates.receive_from_group(receive, "updater", names=["w"])
    assert len(others.waits) == 3
    assert min(others.waits) > LONGEST_JOIN


def test_a_group_is_waited_for_for_a_while_once_ranks_serve(monkeypatch):
    def join(**given: Any) -> Any:
        return given.get("timeout")

    bound = timedelta(seconds=weight_updates.GROUP_SECONDS)
    assert weight_updates.join_in_time(join) == bound
    assert weight_updates.join_in_time(join, timeout="asked for") == "asked for"
    monkeypatch.setattr(layer, "serving", lambda: None)
    assert weight_updates.join_in_time(join) is None


def group_at(port: int, rank: int) -> dict[str, Any]:
    """What SGLang gives for rank `rank` of two."""
    return {"init_method": f"tcp://127.0.0.1:{port}", "world_size": 2, "rank": rank, "group_name": "weights"}


def test_ranks_of_a_group_meet_where_sglang_would_have_them_meet():
    first = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    given = weight_updates.join_in_time(lambda **given: given, **group_at(first.port, 1))
    assert "init_method" not in given
    given["store"].set("here", "rank 1")
    assert dist.PrefixStore("weights", first).get("here") == b"rank 1"


def test_a_group_whose_first_rank_accepts_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(weight_updates, "GROUP_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given = group_at(listener.getsockname()[1], 1)
        with pytest.raises(InvalidInput, match=r"master_address.*said nothing within 0.5 s"):
            weight_updates.join_in_time(lambda **_: pytest.fail("joined"), **given)


def test_what_torch_says_of_a_group_that_cannot_be_met_is_told():
    with pytest.raises(RuntimeError, match="surprise"):
        weight_updates.join_in_time(
            lambda **_: pytest.fail("joined"), **group_at(1, 1) | {"init_method": "surprise://"}
        )
