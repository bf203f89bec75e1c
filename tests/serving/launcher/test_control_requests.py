"""Requests that ranks could not serve are refused before one sees them, and none is ended by an abort before it."""

import asyncio
import contextlib
import enum
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.launcher import control_requests
from sglang_ascend_moe.serving.options import Options, attach

WITHOUT = SimpleNamespace()
WITH = SimpleNamespace()
attach(WITH, Options())

RANKS = 2
PORT = 29500


class ProfileReqType(enum.Enum):
    """SGLang's."""

    START_PROFILE = 1
    STOP_PROFILE = 2


class ExpertDistributionReqType(enum.Enum):
    """SGLang's."""

    START_RECORD = 1
    DUMP_RECORD = 3


class LoadFormat(enum.Enum):
    """A part of SGLang's."""

    AUTO = "auto"


@pytest.fixture(autouse=True)
def sglang(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of SGLang's modules, which take long to import, on a machine without accelerator."""
    set_to = SimpleNamespace(recorder=None, records="/tmp", dp_ranks=1, stages=1, profile_v2=False, dumps="/tmp/dumps")
    runtime = SimpleNamespace(
        get_parallel=lambda: SimpleNamespace(tp_size=RANKS, num_dp_ranks=set_to.dp_ranks, pp_size=set_to.stages),
        get_observability=lambda: SimpleNamespace(crash_dump_folder=set_to.dumps),
        get_exec=lambda: SimpleNamespace(moe=SimpleNamespace(expert_distribution_recorder_mode=set_to.recorder)),
    )
    environ = SimpleNamespace(
        envs=SimpleNamespace(
            SGLANG_PROFILE_V2=SimpleNamespace(get=lambda: set_to.profile_v2),
            SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=SimpleNamespace(get=lambda: set_to.records),
        ),
    )
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", runtime)
    monkeypatch.setitem(sys.modules, "sglang.srt.environ", environ)
    monkeypatch.setitem(sys.modules, "sglang.srt.configs.load_config", SimpleNamespace(LoadFormat=LoadFormat))
    monkeypatch.setattr(control_requests, "on_host", lambda: True)
    return set_to


def manager(server_args: object = WITH) -> SimpleNamespace:
    return SimpleNamespace(server_args=server_args)


USUAL: dict[str, dict[str, Any]] = {
    "ReleaseMemoryOccupationReqInput": {},
    "ResumeMemoryOccupationReqInput": {},
    "ExpertDistributionReq": {"action": ExpertDistributionReqType.DUMP_RECORD},
    "InitWeightsSendGroupForRemoteInstanceReqInput": {"ports": "1,2", "group_name": "a"},
    "SendWeightsToRemoteInstanceReqInput": {"ports": "1,2", "group_name": "a"},
    "InitWeightsUpdateGroupReqInput": {
        "group_name": "a", "backend": "gloo", "rank_offset": 1, "world_size": 3, "master_address": "127.0.0.1",
        "master_port": PORT,
    },
    "UpdateWeightFromDiskReqInput": {"model_path": "owner/model", "load_format": None},
    "UpdateWeightsFromDistributedReqInput": {},
    "UpdateWeightsFromTensorReqInput": {},
    "UpdateWeightsFromIPCReqInput": {},
    "ProfileReq": {
        "req_type": ProfileReqType.START_PROFILE, "activities": None, "profile_by_stage": False, "num_steps": None,
        "profile_id": "1795912698.1", "profile_prefix": None, "output_dir": None,
    },
    "ConfigureLoggingReq": {"dump_requests_folder": None, "crash_dump_folder": None},
    "SlowDownReqInput": {"forward_sleep_time": None},
    "FlushCacheReqInput": {"timeout_s": 3600.0},
    "SetInternalStateReq": {"server_args": {}},
    "AbortReq": {"abort_all": False},
}  # fmt: skip
"""What each kind of request has, with values that ranks can serve if they can serve any."""


def request(kind: str, **fields: Any) -> Any:
    return type(kind, (SimpleNamespace,), {})(**{**USUAL[kind], **fields})


def test_every_row_is_of_a_kind_that_is_tried_here():
    assert {kind for row in control_requests.CONTROL_REQUESTS for kind in row.kinds} <= set(USUAL)


NEVER = [
    pytest.param("ReleaseMemoryOccupationReqInput", "keeps its memory", id="release memory"),
    pytest.param("ResumeMemoryOccupationReqInput", "keeps its memory", id="resume memory"),
    pytest.param("ExpertDistributionReq", "--expert-distribution-recorder-mode", id="recording"),
    pytest.param("InitWeightsSendGroupForRemoteInstanceReqInput", "the memory of an accelerator", id="a group"),
    pytest.param("SendWeightsToRemoteInstanceReqInput", "the memory of an accelerator", id="weights"),
]


@pytest.mark.parametrize(("kind", "message"), NEVER)
def test_what_this_server_never_does_is_unsupported(kind, message):
    with pytest.raises(Unsupported, match=message):
        control_requests.check_control_request(manager(), request(kind))
    control_requests.check_control_request(manager(WITHOUT), request(kind))


@pytest.mark.parametrize("kind", [kind for kind in USUAL if kind not in {row.values[0] for row in NEVER}])
def test_what_ranks_can_serve_passes(kind):
    control_requests.check_control_request(manager(), request(kind))


def test_a_server_that_records_and_a_machine_with_accelerators_do_what_others_cannot(sglang, monkeypatch):
    sglang.recorder = "stat"
    monkeypatch.setattr(control_requests, "on_host", lambda: False)
    for kind in USUAL:
        if "MemoryOccupation" not in kind:
            control_requests.check_control_request(manager(), request(kind))
    control_requests.check_control_request(manager(), request("ProfileReq", activities=["MEM"]))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("InitWeightsUpdateGroupReqInput", {"backend": "nccl"}, id="backend"),
        pytest.param("InitWeightsUpdateGroupReqInput", {"rank_offset": -1}, id="rank below 0"),
        pytest.param("InitWeightsUpdateGroupReqInput", {"rank_offset": 2}, id="rank outside of the group"),
        pytest.param("InitWeightsUpdateGroupReqInput", {"master_port": 0}, id="no port"),
        pytest.param("InitWeightsUpdateGroupReqInput", {"master_port": 65536}, id="port past 16 bits"),
        pytest.param("InitWeightsUpdateGroupReqInput", {"group_name": ""}, id="no group"),
        pytest.param("UpdateWeightFromDiskReqInput", {"model_path": "/nowhere"}, id="no folder"),
        pytest.param("UpdateWeightFromDiskReqInput", {"model_path": ""}, id="no path"),
        pytest.param("UpdateWeightFromDiskReqInput", {"model_path": "\x00"}, id="NUL"),
        pytest.param("UpdateWeightFromDiskReqInput", {"load_format": "surprise"}, id="format"),
        pytest.param("ProfileReq", {"activities": []}, id="nothing to profile"),
        pytest.param("ProfileReq", {"activities": ["GPU"]}, id="only an accelerator"),
        pytest.param("ProfileReq", {"activities": ["CPU", "MEM"]}, id="memory of an accelerator"),
        pytest.param("ProfileReq", {"profile_by_stage": True}, id="stages without end"),
        pytest.param("ProfileReq", {"profile_by_stage": True, "num_steps": 0}, id="stages of no step"),
        pytest.param("ProfileReq", {"profile_id": "../x"}, id="name of another folder"),
        pytest.param("ProfileReq", {"profile_prefix": "\x00"}, id="no name"),
        pytest.param("ProfileReq", {"profile_id": "x" * 97}, id="long name"),
        pytest.param("ProfileReq", {"output_dir": "/proc/surprise"}, id="folder that cannot be made"),
        pytest.param("ProfileReq", {"output_dir": "\x00"}, id="no folder to write to"),
        pytest.param("ConfigureLoggingReq", {"dump_requests_folder": "/tmp"}, id="requests anywhere"),
        pytest.param("ConfigureLoggingReq", {"dump_requests_folder": "/tmp/dumps/../x"}, id="requests out of it"),
        pytest.param("ConfigureLoggingReq", {"dump_requests_folder": "\x00"}, id="requests nowhere"),
        pytest.param("ConfigureLoggingReq", {"crash_dump_folder": "dumps"}, id="crash dumps anywhere"),
        pytest.param("SlowDownReqInput", {"forward_sleep_time": 61.0}, id="long sleep"),
        pytest.param("SlowDownReqInput", {"forward_sleep_time": float("nan")}, id="no sleep"),
        pytest.param("SlowDownReqInput", {"forward_sleep_time": -1.0}, id="negative sleep"),
        pytest.param("FlushCacheReqInput", {"timeout_s": float("inf")}, id="long wait"),
        pytest.param("SetInternalStateReq", {"server_args": {"pp_max_micro_batch_size": "a"}}, id="text"),
        pytest.param("SetInternalStateReq", {"server_args": {"pp_max_micro_batch_size": 1.5}}, id="half a request"),
        pytest.param("SetInternalStateReq", {"server_args": {"speculative_accept_threshold_acc": True}}, id="truth"),
    ],
)  # fmt: skip
def test_what_ranks_cannot_serve_is_invalid_and_names_the_field(kind, fields):
    given = request(kind, **fields)
    with pytest.raises(InvalidInput) as raised:
        control_requests.check_control_request(manager(), given)
    assert any(field.removesuffix("_s") in str(raised.value) for field in fields)
    control_requests.check_control_request(manager(WITHOUT), given)


@pytest.mark.parametrize("folder", ["", "/tmp/dumps", "/tmp/dumps/today"], ids=["none", "the folder", "within it"])
def test_requests_are_dumped_where_the_server_was_told_to(sglang, folder):
    given = request("ConfigureLoggingReq", dump_requests_folder=folder, crash_dump_folder=folder)
    control_requests.check_control_request(manager(), given)
    sglang.dumps = None
    if folder:
        with pytest.raises(InvalidInput, match="--crash-dump-folder"):
            control_requests.check_control_request(manager(), given)


def test_records_are_dumped_where_they_can_be_written(sglang):
    sglang.recorder = "stat"
    sglang.records = "/proc/surprise"
    started = request("ExpertDistributionReq", action=ExpertDistributionReqType.START_RECORD)
    control_requests.check_control_request(manager(), started)
    with pytest.raises(InvalidInput, match="SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"):
        control_requests.check_control_request(manager(), request("ExpertDistributionReq"))


@pytest.mark.parametrize("kind", [kind for kind in USUAL if kind.startswith(("UpdateW", "InitWeightsUpdate"))])
def test_a_pipeline_keeps_its_weights(sglang, kind):
    control_requests.check_control_request(manager(), request(kind))
    sglang.stages = 2
    with pytest.raises(Unsupported, match="--pp-size"):
        control_requests.check_control_request(manager(), request(kind))


@pytest.mark.parametrize("release", ["0.5.18", "0.5.20", "0.5.21", "0.5.23"])
@pytest.mark.parametrize("kind", [kind for kind in USUAL if kind.startswith(("UpdateW", "InitWeightsUpdate"))])
def test_weights_of_a_group_are_taken_where_ranks_agree_before_they_load(monkeypatch, kind, release):
    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    through_group = kind in ("InitWeightsUpdateGroupReqInput", "UpdateWeightsFromDistributedReqInput")
    refused = through_group and release < "0.5.21"
    with pytest.raises(Unsupported, match=r"0\.5\.21") if refused else contextlib.nullcontext():
        control_requests.check_control_request(manager(), request(kind))


def test_a_pipeline_records_nothing(sglang):
    sglang.recorder = "stat"
    control_requests.check_control_request(manager(), request("ExpertDistributionReq"))
    sglang.stages = 2
    with pytest.raises(Unsupported, match="--pp-size"):
        control_requests.check_control_request(manager(), request("ExpertDistributionReq"))


def test_profiling_by_stage_only_ends_a_server(sglang):
    sglang.profile_v2 = True
    with pytest.raises(Unsupported, match="SGLANG_PROFILE_V2"):
        control_requests.check_control_request(manager(), request("ProfileReq"))


@pytest.mark.parametrize(("name", "refused"), [("model.safetensors", False), ("config.json", True)])
def test_weights_are_loaded_from_a_folder_that_has_some(tmp_path: Path, name, refused):
    (tmp_path / name).touch()
    given = request("UpdateWeightFromDiskReqInput", model_path=str(tmp_path), load_format="auto")
    if refused:
        with pytest.raises(InvalidInput, match="model_path"):
            control_requests.check_control_request(manager(), given)
    else:
        control_requests.check_control_request(manager(), given)


def test_a_group_is_joined_when_somebody_listens():
    async def answer(*_: object) -> str:
        return "joined"

    async def join() -> str:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            given = request("InitWeightsUpdateGroupReqInput", master_port=port)
            return await control_requests.join_update_group(answer, manager(), given)

    assert asyncio.run(join()) == "joined"


@pytest.mark.parametrize("address", ["127.0.0.1", "not an address", "\x00", "x" * 1000], ids=repr)
def test_a_group_that_nobody_leads_is_refused(monkeypatch, address):
    async def answer(*_: object) -> None:
        pytest.fail("a rank was asked")

    monkeypatch.setattr(control_requests, "LISTEN_SECONDS", 0.0)
    given = request("InitWeightsUpdateGroupReqInput", master_address=address, master_port=1)
    with pytest.raises(InvalidInput, match="master_address: nobody listens"):
        asyncio.run(control_requests.join_update_group(answer, manager(), given))


HOOKS_OF_ABORTS = [control_requests.send_after_aborts, control_requests.tokenize_and_hear_aborts]


def sent_after_aborts(aborts: list[Any], requests: int, hook: Callable[..., Any]) -> list[str]:
    """What leaves for the ranks, in this order, when so many requests come after these aborts, with a hook around what
    sends, or tokenizes before what sends at once."""
    left: list[str] = []
    asked = manager()

    async def hear() -> None:
        left.append("heard by all")

    async def make(_manager: object, name: str) -> str:
        return name

    async def send(_manager: object, name: str) -> None:
        left.append(name)

    async def ask(name: str) -> None:
        if hook is control_requests.send_after_aborts:
            await hook(send, asked, name)
        else:
            left.append(await hook(make, asked, name))

    async def run() -> None:
        for abort in aborts:
            control_requests.check_control_request(asked, abort)
        await asyncio.gather(*(ask(f"request {place}") for place in range(requests)))

    asked.get_internal_state = hear
    asyncio.run(run())
    return left


@pytest.mark.parametrize("hook", HOOKS_OF_ABORTS)
def test_a_request_leaves_when_every_rank_has_heard_of_the_abort_of_all(sglang, hook):
    sglang.dp_ranks = 2
    aborts = [request("AbortReq", abort_all=True)] * 2
    assert sent_after_aborts(aborts, 2, hook) == ["heard by all", "request 0", "request 1"]


@pytest.mark.parametrize("hook", HOOKS_OF_ABORTS)
@pytest.mark.parametrize(("dp_ranks", "abort_all"), [(2, False), (1, True)], ids=["of one request", "on one way"])
def test_other_aborts_hold_up_nobody(sglang, dp_ranks, abort_all, hook):
    sglang.dp_ranks = dp_ranks
    assert sent_after_aborts([request("AbortReq", abort_all=abort_all)], 1, hook) == ["request 0"]


def test_updates_from_disk_come_one_after_the_other():
    done: list[str] = []

    async def update(_manager: object, name: str) -> None:
        done.append(f"{name} begins")
        await asyncio.sleep(0)
        done.append(f"{name} ends")

    async def run() -> None:
        asked = manager()
        await asyncio.gather(*(control_requests.update_after_others(update, asked, name) for name in "ab"))

    asyncio.run(run())
    assert done == ["a begins", "a ends", "b begins", "b ends"]
