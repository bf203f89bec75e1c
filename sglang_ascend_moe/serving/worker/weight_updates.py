"""Weights that come while a server serves: what one rank cannot take is refused by all, and ends none.

Hooks of `worker_hooks`. Each rank reads its own part, so one may fail where others do not. SGLang's ranks meet after an
update, so one that fails must come there too, and all must tell the same of it.
"""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.worker import layer

GROUP_SECONDS = 120.0
"""How long ranks wait for others in a group for weights, at every step. SGLang ends a rank that is busy for 300."""
_MEETING_SECONDS = 2 * GROUP_SECONDS + 10
"""How long a rank waits for one that still waits in such a group: to join it takes two steps."""

# What reading foreign weights may raise; an error of an exchange is none of these.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.PickleError,
)


class Unreadable(NamedTuple):
    """In place of tensors that this rank cannot read."""

    problem: str


def update_from_disk(
    original: Callable[..., tuple[bool, str]],
    updater: Any,
    model_path: str,
    load_format: str,
    weight_name_filter: Callable[[str], bool] | None = None,
    recapture_cuda_graph: bool = False,
) -> tuple[bool, str]:
    """Around `WeightUpdater.update_weights_from_disk`: if a rank fails, all go back to the weights they had.

    SGLang goes back to the path that has just failed. Raises `InvalidInput` if there is no way back.
    """
    if layer.serving() is None:
        return original(updater, model_path, load_format, weight_name_filter, recapture_cuda_graph)
    before = updater.model_config.model_path
    updated, said = _agreed(*_attempted(original, updater, model_path, load_format, weight_name_filter))
    if not updated:
        restored, problem = original(updater, before, _own_format())
        if not restored:
            raise InvalidInput(
                f"after a failed update ({said}) {before} must still have the weights, and has not: {problem}"
            )
    elif recapture_cuda_graph and _captures_graphs():
        # Ranks exchange tokens while they capture, so all have to.
        updater.recapture_cuda_graph()
    return updated, said


def read_tensors(original: Callable[..., Any], worker: Any, serialized_named_tensors: Any) -> Any:
    """Around `BaseTpWorker.deserialize_own_rank`."""
    if layer.serving() is None:
        return original(worker, serialized_named_tensors)
    try:
        return original(worker, serialized_named_tensors)
    except _faults() as error:
        return Unreadable(f"the tensors cannot be read: {type(error).__name__}: {error}")


def update_from_tensors(
    original: Callable[..., tuple[bool, str]], updater: Any, named_tensors: Any, load_format: str | None = None
) -> tuple[bool, str]:
    """Around `WeightUpdater.update_weights_from_tensor`: what it raises becomes its answer, on every rank."""
    if layer.serving() is None:
        return original(updater, named_tensors, load_format)
    if isinstance(named_tensors, Unreadable):
        return _agreed(False, named_tensors.problem)
    return _agreed(*_attempted(original, updater, named_tensors, load_format))


def join_group(
    original: Callable[..., tuple[bool, str]],
    updater: Any,
    master_address: str,
    master_port: int,
    rank_offset: int,
    world_size: int,
    group_name: str,
    backend: str = "nccl",
) -> tuple[bool, str]:
    """Around `WeightUpdater.init_weights_update_group`: all ranks join, or none."""
    joined, said = original(updater, master_address, master_port, rank_offset, world_size, group_name, backend)
    if layer.serving() is None:
        return joined, said
    _meet()
    all_joined, said = _agreed(joined, said)
    if joined and not all_joined:
        updater.destroy_weights_update_group(group_name)
    return all_joined, said


def receive_from_group(original: Callable[..., Any], updater: Any, **keywords: Any) -> Any:
    """Around `WeightUpdater.receive_weights_from_distributed`: all ranks receive, or none.

    Raises `InvalidInput` on every rank, which SGLang answers.
    """
    if layer.serving() is None:
        return original(updater, **keywords)
    weights, problem = None, ""
    try:
        weights = original(updater, **keywords)
    except _faults() as error:
        problem = f"{type(error).__name__}: {error}"
    _meet()
    received, problem = _agreed(not problem, problem)
    if not received:
        raise InvalidInput(problem)
    return weights


def _meet() -> None:
    """All ranks come here, one that waited in a group long after another: so much that others' patience would end."""
    from sglang.srt.runtime_context import get_parallel

    dist.monitored_barrier(get_parallel().tp_group.cpu_group, timedelta(seconds=_MEETING_SECONDS))


def join_in_time(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Around `init_custom_process_group`: a server that serves waits for others for a while only.

    Raises `InvalidInput`, which SGLang answers, if who listens at the group's address does not answer.
    """
    if layer.serving() is not None:
        keywords.setdefault("timeout", timedelta(seconds=GROUP_SECONDS))
        if keywords.get("store") is None and keywords.get("init_method") is not None:
            keywords["store"] = _group_store(keywords)
            del keywords["init_method"]
    return original(*arguments, **keywords)


def _group_store(given: dict[str, Any]) -> dist.Store:
    """The store in which the ranks of a group meet, as SGLang would make it.

    Torch waits for ever for the first word of a listener that accepts and says nothing, so a thread does it.
    """
    timeout: timedelta = given["timeout"]
    met: Future[dist.Store] = Future()

    def meet() -> None:
        try:
            store, _, _ = next(
                dist.rendezvous(given["init_method"], given["rank"], given["world_size"], timeout=timeout)
            )
        except (ValueError, RuntimeError, OSError) as error:
            met.set_exception(error)
        else:
            met.set_result(store)

    threading.Thread(target=meet, name="rendezvous", daemon=True).start()
    try:
        store = met.result(timeout.total_seconds())
    except TimeoutError:
        raise InvalidInput(
            f"master_address, master_port: who listens at {given['init_method']} said nothing within"
            f" {timeout.total_seconds():g} s; give those of the group's first rank"
        ) from None
    store.set_timeout(timeout)
    return dist.PrefixStore(given["group_name"], store)


def _attempted(original: Callable[..., tuple[bool, str]], *arguments: Any, **keywords: Any) -> tuple[bool, str]:
    try:
        return original(*arguments, **keywords)
    except _faults() as error:
        return False, f"the weights cannot be loaded: {type(error).__name__}: {error}"


def _faults() -> tuple[type[BaseException], ...]:
    from safetensors import SafetensorError

    return (*_FAULTS, SafetensorError)


def _agreed(updated: bool, said: str) -> tuple[bool, str]:
    """The outcome of all ranks: what went wrong, of each rank that failed, or what this one says."""
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().tp_group.cpu_group
    problems: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(problems, None if updated else said, group=group)
    failed = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem is not None]
    return (False, "; ".join(failed)) if failed else (updated, said)


def _captures_graphs() -> bool:
    from sglang.srt.platforms import current_platform

    return bool(current_platform.is_out_of_tree() and current_platform.capabilities.graph_capture)


def _own_format() -> str:
    from sglang.srt.runtime_context import get_model

    return str(get_model().load_format)
