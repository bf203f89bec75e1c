"""Prefill and decode instances of SGLang's disaggregation find out whether they fit, before keys and values move.

A decode instance learns of a prefill instance with the first request that the router sends to both. It then asks for
the other's `Instance` block, compares, and stops if the two do not fit. `report_instance`, `describe_instance`,
`leave_port_to_node_0`, `add_instance_route` and `require_prefill_fits` are hooks: see `worker_hooks`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch, Unsupported
from sglang_ascend_moe.exchange.control.instance import (
    NO_DRAFTS,
    Instance,
    answer_challenge,
    digest_of_checkpoint,
    instance_of,
    require_pair,
    unsealed,
)
from sglang_ascend_moe.exchange.control.secret import Secret, draw_challenge, read_secret
from sglang_ascend_moe.serving.http_client import PIECE_BYTES, answered
from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.worker import stage_groups

logger = logging.getLogger(__name__)

INSTANCE_KEY = "ascend_moe_instance"
"""Key in SGLang's internal state."""
INSTANCE_ROUTE = "/ascend_moe/instance"
ASK_SECONDS = 20.0
MAX_ANSWER_BYTES = 1 << 24

_own: Instance | None = None
_fitting: set[str] = set()


def describe_instance(_result: None, scheduler: Any) -> None:
    """After `Scheduler.init_disaggregation`, when the cache exists: this process knows what its instance is."""
    global _own
    options = options_of(scheduler.server_args)
    role = scheduler.disaggregation_mode.value
    if options is None or role not in ("prefill", "decode"):
        return
    from sglang.srt.runtime_context import get_parallel

    prefills = role == "prefill"
    queue = scheduler.disagg_prefill_bootstrap_queue if prefills else scheduler.disagg_decode_prealloc_queue
    cache = queue.kv_manager.kv_args
    # Those of a draft model stand behind those of the model.
    buffers = cache.kv_item_lens[: len(cache.kv_item_lens) - cache.num_draft_entries]
    # SGLang 0.5.22 has one layout.
    layout = getattr(cache, "kv_layout", None) or "plain"
    kind = f"{type(scheduler.token_to_kv_pool_allocator.get_kvcache()).__name__}, {layout}"
    stages = stage_groups.of_all_stages((len(buffers), sum(buffers)))
    model = scheduler.model_config
    parallel = get_parallel()
    _own = Instance(
        role=role,
        model=str(model.model_path),
        model_digest=digest_of_checkpoint(_folder_of("--model-path", model.model_path, model.revision)),
        dtype=str(model.dtype).removeprefix("torch."),
        quantisation=model.quantization or "none",
        row_quant=options.quant,
        kv_dtype=str(cache.kv_cache_dtype_str),
        kv_layout=f"{kind}, {sum(number for number, _ in stages)} buffers",
        page_size=cache.page_size,
        kv_token_bytes=sum(size for _, size in stages) // cache.page_size,
        tp_size=parallel.tp_size,
        dp_size=parallel.attn_dp_size,
        ep_size=parallel.moe_ep_size,
        pp_size=parallel.pp_size,
        mixed_sizes=options.mixed_sizes,
        sealed=options.secret_file is not None,
        drafts=_drafts(),
    )


def _drafts() -> str:
    """How this instance drafts: what the other has to know of it. The number of steps is its own affair."""
    from sglang.srt.runtime_context import get_spec

    spec = get_spec()
    if not spec.speculative_algorithm:
        return NO_DRAFTS
    path, revision = spec.speculative_draft_model_path, spec.speculative_draft_model_revision
    digest = digest_of_checkpoint(_folder_of("--speculative-draft-model-path", path, revision))
    return f"{spec.speculative_algorithm}, {spec.speculative_eagle_topk} branches, {digest}"


def _folder_of(flag: str, path: str, revision: str | None) -> Path:
    """The folder of a checkpoint, which a name on a hub stands for as well. Raises `Unsupported` if there is none."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise Unsupported(
            f"{flag} {path}: the files of the checkpoint are not on this machine, so that instances"
            " cannot be compared; give a folder"
        ) from error


def report_instance(answer: Any, _scheduler: Any, *_: Any, **__: Any) -> None:
    """After `Scheduler.get_internal_state`: `/server_info` tells what this instance is."""
    if _own is not None:
        answer.internal_state[INSTANCE_KEY] = msgspec.to_builtins(_own)


def require_prefill_fits(known: bool, manager: Any, bootstrap_addr: str) -> bool | None:
    """After `CommonKVManager.try_ensure_parallel_info`: the prefill instance behind `bootstrap_addr` has to fit.

    False, as long as it does not answer, makes SGLang try again, and give up in time. Raises `ProtocolMismatch`.
    """
    if not known or _own is None or bootstrap_addr in _fitting:
        return None
    port = manager.prefill_info_table[bootstrap_addr].prefill_http_port
    url = f"http://{bootstrap_addr.rpartition(':')[0]}:{port}"
    try:
        options = options_of(manager.server_args)
        secret = read_secret(options.secret_file) if options is not None else None
        prefill = ask_instance(url, manager.server_args.api_key, secret)
    except OSError as error:
        logger.error("The prefill instance at %s does not say what it is: %s", url, error)
        return False
    require_pair(prefill, _own)
    _fitting.add(bootstrap_addr)
    return None


def leave_port_to_node_0(_manager: Any, url: str, payload: dict[str, Any]) -> None:  # noqa: ARG001
    """Before `CommonKVManager._register_topology_row`: ranks of other nodes do not say where the instance answers."""
    from sglang.srt.runtime_context import get_parallel

    if get_parallel().node_rank:
        payload["prefill_http_port"] = None


def add_instance_route(server_args: Any, tokenizer_manager: Any, *_: Any, **__: Any) -> None:
    """Before `_setup_and_run_http_server`: with a secret, the server answers challenges with a sealed block."""
    options = options_of(server_args)
    secret = read_secret(options.secret_file) if options is not None else None
    if secret is None:
        return
    from fastapi.responses import JSONResponse
    from sglang.srt.entrypoints.http_server import app

    async def describe(challenge: str) -> Any:
        states = await tokenizer_manager.get_internal_state()
        if INSTANCE_KEY not in states[0]:
            return JSONResponse({"error": "not an instance of a disaggregated deployment"}, status_code=404)
        instance = instance_of(states[0][INSTANCE_KEY], "this instance")
        try:
            return msgspec.to_builtins(answer_challenge(secret, instance, challenge))
        except InvalidInput as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    app.add_api_route(INSTANCE_ROUTE, describe, methods=["GET"])


def ask_instance(url: str, api_key: str | None = None, secret: Secret | None = None) -> Instance:
    """What the server at `url` is; sealed, for a challenge, with a `secret`.

    Raises OSError if it does not answer, `ProtocolMismatch` if it does not say, or not under this secret.
    """
    from requests import HTTPError, codes

    source = f"the instance at {url}"
    if secret is None:
        states = _ask(f"{url}/server_info", api_key, source, _ServerInfo).internal_states
        return instance_of(states[0].get(INSTANCE_KEY) if states else None, source)
    challenge = draw_challenge()
    try:
        said = _ask(f"{url}{INSTANCE_ROUTE}?challenge={challenge.hex()}", api_key, source, Any)
    except HTTPError as error:
        if error.response is None or error.response.status_code != codes.not_found:
            raise
        raise ProtocolMismatch(
            f"{source} does not seal what it says of itself; give --ascend-moe-secret-file with the same secret to both"
        ) from error
    return unsealed(secret, said, challenge, source)


class _ServerInfo(msgspec.Struct):
    """The part of `/server_info` that matters here."""

    internal_states: list[dict[str, Any]] = []


def _ask(url: str, api_key: str | None, source: str, kind: Any) -> Any:
    said = bytearray()
    with answered("GET", url, timeout=ASK_SECONDS, api_key=api_key) as answer:
        answer.raise_for_status()
        for piece in answer.iter_content(PIECE_BYTES):
            said += piece
            if len(said) > MAX_ANSWER_BYTES:
                raise ProtocolMismatch(f"{source} says more than {MAX_ANSWER_BYTES} bytes of itself")
    try:
        return msgspec.json.decode(said, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolMismatch(f"{source} does not say what it is ({error})") from error
