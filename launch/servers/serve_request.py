"""What a command line asks of SGLang's server, as far as it can be checked before SGLang is imported."""

from __future__ import annotations

import msgspec

from sglang_ascend_moe.serving.launcher.given_flags import Given
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import Role


class ServeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields are SGLang's server arguments of the same names, None where SGLang decides; `options` are ours.

    sizes count ranks, `..._tokens` and `context_length` tokens, `max_running_requests` requests of all ranks together.
    attn_dp_size: SGLang has it from 0.5.22 on.
    """

    model_path: str
    revision: str | None
    load_format: str
    device: str | None
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    host: str
    port: int
    tp_size: int
    dp_size: int
    attn_dp_size: int = 1
    enable_dp_attention: bool
    attn_cp_size: int
    enable_prefill_cp: bool
    cp_strategy: str | None
    pp_size: int
    pp_max_micro_batch_size: int | None
    ep_num_redundant_experts: int
    init_expert_location: str
    nnodes: int
    node_rank: int
    dist_init_addr: str | None
    tokenizer_worker_num: int
    context_length: int | None
    max_running_requests: int | None
    max_total_tokens: int | None
    max_prefill_tokens: int
    chunked_prefill_size: int | None
    mem_fraction_static: float | None
    page_size: int | None
    disable_cuda_graph: bool
    disable_radix_cache: bool
    cuda_graph_bs_decode: list[int] | None
    cuda_graph_max_bs_decode: int | None
    speculative_algorithm: str | None
    speculative_draft_model_path: str | None
    speculative_num_steps: int | None
    speculative_eagle_topk: int | None
    speculative_num_draft_tokens: int | None
    disaggregation_mode: Role
    disaggregation_bootstrap_port: int
    options: Options | None


def request_of(given: Given) -> ServeRequest:
    """The request that was given on a command line, which has to name a model."""
    settings = vars(given.settings)
    fields = {name: settings[name] for name in ServeRequest.__struct_fields__ if name in settings}
    return ServeRequest(options=given.options, **fields)
