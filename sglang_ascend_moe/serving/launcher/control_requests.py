"""What may not be asked of a server besides tokens, found before a rank sees it.

SGLang gives requests that steer a server to its ranks as they are, and a rank that cannot do what it is asked ends the
server. The table is read where such a request leaves for the ranks, over HTTP or from `sglang.Engine`, or where the
launcher does what it asks.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving.hooks import on_host
from sglang_ascend_moe.serving.launcher.attention_groups import data_parallel_ranks
from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.sglang_release import reaches

LONGEST_SLEEP_SECONDS = 60.0
"""Before each batch, for `/slow_down`."""
LONGEST_WAIT_SECONDS = 3600.0
"""For a moment without requests, for `/flush_cache`."""
LISTEN_SECONDS = 30.0
"""How long a group for weights may take until somebody listens at its address."""
RECEIVED_FIRST = "0.5.21"
"""The first release of SGLang in which ranks can agree that all have received weights before one loads them."""
PORTS = range(1, 2**16)
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")
HOST_ACTIVITIES = frozenset({"CPU", "GPU"})
"""What a profiler may be asked for on a host; of GPU it finds nothing there, and SGLang asks for both by default."""

# What is kept on the tokenizer manager.
_UNHEARD = "ascend_moe_unheard_abort"
_UPDATING = "ascend_moe_updating"


class ControlRequest(NamedTuple):
    """Something that cannot be asked of a server.

    kinds: names of SGLang's types for the requests that ask it. wrong: whether such a request cannot be served. reason:
    for the message. never: whether this server serves none of the kind, which is 501 over HTTP, or does if it is asked
    otherwise, which is 400.
    """

    kinds: tuple[str, ...]
    wrong: Callable[[Any], bool]
    reason: str
    never: bool = False


def _always(_request: Any) -> bool:
    return True


def _records_nothing(_request: Any) -> bool:
    from sglang.srt.runtime_context import get_exec

    return get_exec().moe.expert_distribution_recorder_mode is None


def _dumps_records_nowhere(request: Any) -> bool:
    from sglang.srt.environ import envs

    folder = envs.SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR.get()
    return request.action.name == "DUMP_RECORD" and not _is_writable_folder(folder)


def _has_no_accelerator(_request: Any) -> bool:
    return on_host()


def _profiles_by_stage_only(_request: Any) -> bool:
    from sglang.srt.environ import envs

    return bool(envs.SGLANG_PROFILE_V2.get())


def _starts_profile(request: Any) -> bool:
    return bool(request.req_type.name == "START_PROFILE")


def _profiles_something_else(request: Any) -> bool:
    activities = request.activities
    return on_host() and activities is not None and not {"CPU"} <= set(activities) <= HOST_ACTIVITIES


def _profiles_stages_for_ever(request: Any) -> bool:
    return bool(request.profile_by_stage) and (request.num_steps or 0) < 1


def _profiles_into_no_file(request: Any) -> bool:
    return not all(name is None or _is_file_name(name) for name in (request.profile_id, request.profile_prefix))


def _profiles_into_an_unwritable_folder(request: Any) -> bool:
    return _starts_profile(request) and request.output_dir is not None and not _is_writable_folder(request.output_dir)


def _is_file_name(name: str) -> bool:
    # With the ranks, the stage and the suffix that SGLang appends a name may have 255 bytes.
    return "/" not in name and name.isprintable() and len(name.encode()) <= 96


def _is_writable_folder(given: str) -> bool:
    """Whether files can be written into the folder, which is made if it does not exist, as SGLang would."""
    try:
        folder = Path(given).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    except (OSError, ValueError, RuntimeError):
        return False


def _dumps_elsewhere(request: Any) -> bool:
    """Whether others' requests would be written into a folder that whoever started the server did not name."""
    from sglang.srt.runtime_context import get_observability

    allowed = get_observability().crash_dump_folder
    folders = filter(None, (request.dump_requests_folder, request.crash_dump_folder))
    return not all(allowed and _is_within(folder, allowed) for folder in folders)


def _is_within(folder: str, allowed: str) -> bool:
    try:
        return Path(folder).resolve().is_relative_to(Path(allowed).resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _sleeps_too_long(request: Any) -> bool:
    seconds = request.forward_sleep_time
    return seconds is not None and not 0 <= seconds <= LONGEST_SLEEP_SECONDS


def _waits_too_long(request: Any) -> bool:
    seconds = request.timeout_s
    return seconds is not None and not 0 <= seconds <= LONGEST_WAIT_SECONDS


def _sets_other_than_numbers(request: Any) -> bool:
    given = request.server_args
    return any(
        isinstance(value, bool) or not isinstance(value, int if name == "pp_max_micro_batch_size" else int | float)
        for name, value in given.items()
        if not name.startswith("dspark_")
    )


def _has_stages(_request: Any) -> bool:
    from sglang.srt.runtime_context import get_parallel

    return bool(get_parallel().pp_size > 1)


def _loads_from_nowhere(request: Any) -> bool:
    """A path without weights. A name such as `owner/model` may be one of the hub's."""
    try:
        folder = Path(request.model_path)
        if folder.is_dir():
            return not any(file.suffix in WEIGHT_FILES for file in folder.iterdir())
        return folder.is_absolute() or len(folder.parts) != 2
    except (OSError, ValueError):
        return True


def _loads_unknown_format(request: Any) -> bool:
    from sglang.srt.configs.load_config import LoadFormat

    return request.load_format is not None and request.load_format not in [known.value for known in LoadFormat]


def _loads_what_others_miss(_request: Any) -> bool:
    return not reaches(RECEIVED_FIRST)


def _names_no_group(request: Any) -> bool:
    return not request.group_name


def _joins_without_gloo(request: Any) -> bool:
    return on_host() and request.backend != "gloo"


def _joins_at_impossible_ranks(request: Any) -> bool:
    from sglang.srt.runtime_context import get_parallel

    return request.rank_offset < 0 or request.rank_offset + get_parallel().tp_size > request.world_size


def _joins_at_no_port(request: Any) -> bool:
    return request.master_port not in PORTS


def _names_wrong_ports(request: Any) -> bool:
    from sglang.srt.runtime_context import get_parallel

    return len(request.ports.split(",")) != get_parallel().tp_size


_SENDING = ("InitWeightsSendGroupForRemoteInstanceReqInput", "SendWeightsToRemoteInstanceReqInput")
_JOINING = "InitWeightsUpdateGroupReqInput"
_LOADING = "UpdateWeightFromDiskReqInput"
_FROM_GROUP = "UpdateWeightsFromDistributedReqInput"
_RECEIVING = (_FROM_GROUP, "UpdateWeightsFromTensorReqInput", "UpdateWeightsFromIPCReqInput")
_PROFILING = "ProfileReq"

CONTROL_REQUESTS = (
    ControlRequest(
        ("ReleaseMemoryOccupationReqInput", "ResumeMemoryOccupationReqInput"),
        _always,
        "with --ascend-moe a server keeps its memory; end it, and start it again",
        never=True,
    ),
    ControlRequest(
        ("ExpertDistributionReq",),
        _records_nothing,
        "this server does not record which experts are asked for; start it with --expert-distribution-recorder-mode",
        never=True,
    ),
    ControlRequest(
        ("ExpertDistributionReq",),
        _has_stages,
        "with --pp-size the stages would wait for each other to add up what they recorded, each for a request that the"
        " other has not seen yet; record without --pp-size",
        never=True,
    ),
    ControlRequest(
        ("ExpertDistributionReq",),
        _dumps_records_nowhere,
        "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR: it must be a folder that the server can write to",
    ),
    ControlRequest(
        _SENDING,
        _has_no_accelerator,
        "weights are sent from the memory of an accelerator, which this machine lacks; start the other instance from"
        " the checkpoint",
        never=True,
    ),
    ControlRequest(
        (_LOADING, _JOINING, *_RECEIVING),
        _has_stages,
        "with --pp-size stages read such a request one after the other, and one could fail when others have other"
        " weights; start the server with those weights",
        never=True,
    ),
    ControlRequest(
        (_JOINING, _FROM_GROUP),
        _loads_what_others_miss,
        f"before SGLang {RECEIVED_FIRST} each rank loads what it gets from a group, also where others got nothing;"
        " install that release, or update the weights from disk",
        never=True,
    ),
    ControlRequest(_SENDING, _names_wrong_ports, "ports: give one for each rank, with commas between"),
    ControlRequest((*_SENDING, _JOINING), _names_no_group, "group_name: give a name"),
    ControlRequest((_JOINING,), _joins_without_gloo, "backend: it must be gloo on a machine without accelerator"),
    ControlRequest(
        (_JOINING,),
        _joins_at_impossible_ranks,
        "rank_offset: it must be at least 0, and with the ranks of the server at most world_size",
    ),
    ControlRequest((_JOINING,), _joins_at_no_port, "master_port: it must be from 1 to 65535"),
    ControlRequest(
        (_LOADING,),
        _loads_from_nowhere,
        "model_path: it must be a folder with weights, or a name of the hub",
    ),
    ControlRequest((_LOADING,), _loads_unknown_format, "load_format: it must be one that --load-format takes"),
    ControlRequest(
        (_PROFILING,),
        _profiles_by_stage_only,
        "with SGLANG_PROFILE_V2 profiling ends a server; unset the variable",
        never=True,
    ),
    ControlRequest(
        (_PROFILING,),
        _profiles_something_else,
        "activities: they must be CPU, or CPU and GPU, on a machine without accelerator",
    ),
    ControlRequest(
        (_PROFILING,),
        _profiles_stages_for_ever,
        "num_steps: profile_by_stage needs at least 1",
    ),
    ControlRequest(
        (_PROFILING,),
        _profiles_into_no_file,
        "profile_id, profile_prefix: they must be parts of a file name, of at most 96 bytes",
    ),
    ControlRequest(
        (_PROFILING,),
        _profiles_into_an_unwritable_folder,
        "output_dir: it must be a folder that the server can write to",
    ),
    ControlRequest(
        ("ConfigureLoggingReq",),
        _dumps_elsewhere,
        "dump_requests_folder, crash_dump_folder: they must be --crash-dump-folder of this server, or lie in it",
    ),
    ControlRequest(
        ("SlowDownReqInput",),
        _sleeps_too_long,
        f"forward_sleep_time: it must be at least 0 and at most {LONGEST_SLEEP_SECONDS:g} seconds",
    ),
    ControlRequest(
        ("FlushCacheReqInput",),
        _waits_too_long,
        f"timeout: it must be at least 0 and at most {LONGEST_WAIT_SECONDS:g} seconds",
    ),
    ControlRequest(
        ("SetInternalStateReq",),
        _sets_other_than_numbers,
        "server_args: values must be numbers, and pp_max_micro_batch_size a whole one",
    ),
)


def check_control_request(manager: Any, obj: Any) -> None:
    """Before `TokenizerManager._dispatch_to_scheduler` and `configure_logging`: raises the error of the first row that
    refuses `obj`.

    An abort of all requests is noted for `send_after_aborts`.
    """
    if options_of(manager.server_args) is None:
        return
    kind = type(obj).__name__
    for row in CONTROL_REQUESTS:
        if kind in row.kinds and row.wrong(obj):
            raise Unsupported(row.reason) if row.never else InvalidInput(row.reason)
    if kind == "AbortReq" and obj.abort_all and _ranks_hear_apart():
        setattr(manager, _UNHEARD, True)


async def join_update_group(
    original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *arguments: Any, **keywords: Any
) -> Any:
    """Around `init_weights_update_group`: ranks serve nobody while they join, so somebody has to listen before they do.

    Raises `InvalidInput` if nobody does. A group whose first rank is one of the server's is listened for by that.
    """
    if options_of(manager.server_args) is not None and obj.rank_offset > 0:
        check_control_request(manager, obj)
        await _require_listener(obj.master_address, obj.master_port)
    return await original(manager, obj, *arguments, **keywords)


async def _require_listener(host: str, port: int) -> None:
    try:
        async with asyncio.timeout(LISTEN_SECONDS):
            while not await _listens(host, port):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise InvalidInput(
            f"master_address: nobody listens at {host[:100]!r}, port {port}; start the group's first rank before"
        ) from None


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except (OSError, OverflowError, ValueError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _ranks_hear_apart() -> bool:
    from sglang.srt.runtime_context import get_parallel

    return data_parallel_ranks(get_parallel()) > 1


async def send_after_aborts(
    original: Callable[..., Coroutine[Any, Any, Any]], manager: Any, *arguments: Any, **keywords: Any
) -> Any:
    """Around `_send_one_request` and `_send_batch_request`: an abort of all requests must not end one that comes later.

    With data-parallel attention ranks hear of requests on ways of their own, and may hear of the abort last. So before
    the next request every rank has to answer something else, which comes behind the abort.
    """
    await _aborts_are_heard(manager)
    return await original(manager, *arguments, **keywords)


async def tokenize_and_hear_aborts(
    original: Callable[..., Coroutine[Any, Any, Any]], manager: Any, *arguments: Any, **keywords: Any
) -> Any:
    """Around `_tokenize_one_request` and `_batch_tokenize_and_process`, whose result is sent at once: as
    `send_after_aborts`."""
    tokenized = await original(manager, *arguments, **keywords)
    await _aborts_are_heard(manager)
    return tokenized


async def _aborts_are_heard(manager: Any) -> None:
    if getattr(manager, _UNHEARD, False) is True:
        setattr(manager, _UNHEARD, asyncio.ensure_future(manager.get_internal_state()))
    if (heard := getattr(manager, _UNHEARD, None)) is not None:
        try:
            await asyncio.shield(heard)
        finally:
            if heard.done() and getattr(manager, _UNHEARD) is heard:
                setattr(manager, _UNHEARD, None)


async def update_after_others(original: Callable[[Any, Any], Awaitable[Any]], manager: Any, obj: Any) -> Any:
    """Around `_wait_for_model_update_from_disk`, which keeps one answer: while generation is paused, nothing else keeps
    two updates apart, and the answer to the second would end the launcher."""
    if options_of(manager.server_args) is None:
        return await original(manager, obj)
    if not hasattr(manager, _UPDATING):
        setattr(manager, _UPDATING, asyncio.Lock())
    async with getattr(manager, _UPDATING):
        return await original(manager, obj)
