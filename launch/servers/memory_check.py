"""Whether the servers of one command fit into the memory of this host, before anything is imported or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sglang_ascend_moe.launch.servers.preflight import may_be_on_hub
from sglang_ascend_moe.launch.servers.serve_request import ServeRequest
from sglang_ascend_moe.serving.host.memory_share import (
    HOST_RUNNING_REQUESTS,
    http_bytes,
    memory_left,
    refuse_server_that_does_not_fit,
    share_of_ranks,
)
from sglang_ascend_moe.serving.host.reservations import outstanding
from sglang_ascend_moe.serving.host.server_estimate import ServerSizes, draft_folder, estimate_server, model_sizes
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.attention_groups import attention_groups, model_replicas
from sglang_ascend_moe.serving.machine_limits import read_limits
from sglang_ascend_moe.serving.worker.sizing import context_parallel, tokens_of_request

# SGLang's other names of dtypes; auto is that of the config.
_DTYPES = {"auto": None, "half": "float16", "float": "float32"}
LEAST_CHUNK = 2048
"""SGLang chooses a chunk by the size of the machine, at least this."""


def check_memory(requests: Sequence[ServeRequest]) -> None:
    """Raise `Unsupported`, with the numbers, if one of the servers that a command starts cannot fit into its part.

    Servers for NPUs take their memory, and are not looked at; nor are models that are not on this machine yet, and
    nodes but the first, which answers for all: on a host they are on one machine.
    """
    on_host = [request for request in requests if device_of(request) == "cpu" and request.node_rank == 0]
    http = sum(http_bytes(request.tokenizer_worker_num) for request in on_host)
    left = memory_left(read_limits(), outstanding(), http=http)
    ranks = sum(server_sizes(request).ranks for request in on_host)
    for request in on_host:
        config = _local_config(request)
        if config is None:
            continue
        dtype = _DTYPES.get(request.dtype, request.dtype)
        model = model_sizes(config.parent, _values(config), dtype=dtype, context=request.context_length)
        if model is None:
            continue
        server = server_sizes(request)
        asked = None if request.options is None else request.options.host_memory
        if asked is None and len(on_host) > 1:
            asked = share_of_ranks(left, server.ranks, ranks)
        refuse_server_that_does_not_fit(
            estimate_server(model, server, request.options), left._replace(asked=asked), request.model_path
        )


def server_sizes(request: ServeRequest) -> ServerSizes:
    """How the server will divide its model."""
    chunk = request.chunked_prefill_size
    return ServerSizes(
        tp=request.tp_size,
        attention_groups=attention_groups(request),
        context=context_parallel(request),
        replicas=model_replicas(request),
        running=request.max_running_requests or HOST_RUNNING_REQUESTS,
        prefill_tokens=chunk if chunk and chunk > 0 else LEAST_CHUNK,
        redundant_experts=request.ep_num_redundant_experts,
        graph_batch=_graph_batch(request),
        role=request.disaggregation_mode,
        request_tokens=tokens_of_request(request),
        draft_folder=draft_folder(request),
        stages=request.pp_size,
        micro_batch=request.pp_max_micro_batch_size,
    )


def _graph_batch(request: ServeRequest) -> int | None:
    if request.disable_cuda_graph or request.disaggregation_mode == "prefill":
        return 0
    return max(request.cuda_graph_bs_decode or [0]) or request.cuda_graph_max_bs_decode


def _local_config(request: ServeRequest) -> Path | None:
    """The config.json of a model of this machine: in its folder, or in the cache of the hub."""
    folder = Path(request.model_path)
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    if not may_be_on_hub(request.model_path):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(request.model_path, "config.json", revision=request.revision)
    return Path(cached) if isinstance(cached, str) else None


def _values(config: Path) -> Any:
    """What a config says under a name, or the part of it that is about text; None if it does not."""
    found = msgspec.json.decode(config.read_bytes())
    text = found.get("text_config")
    inner = text if isinstance(text, dict) else {}
    return lambda name: inner.get(name, found.get(name))
