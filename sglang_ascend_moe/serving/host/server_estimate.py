"""What a server will need of a host, before anything is loaded: pure arithmetic on the configuration of its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.serving.host.checkpoint_bytes import weight_bytes
from sglang_ascend_moe.serving.host.graph_buckets import Limits, choose_buckets
from sglang_ascend_moe.serving.host.memory_share import (
    HOST_RUNNING_REQUESTS,
    OTHER_PROCESSES,
    RANK_PROCESS,
    Scheduling,
    ServerEstimate,
    rank_needs,
)
from sglang_ascend_moe.serving.launcher.refusals import expert_count
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import (
    ContextParallel,
    Role,
    SchedulerLimits,
    micro_batch,
    sized,
    tokens_per_rank,
)
from sglang_ascend_moe.windows.layout import ELEMENT_BYTES, ExchangeParameters, plan_window


class ModelSizes(NamedTuple):
    """Of one model. folder: of its files. context: most tokens of a request. dtype: that it is served in.

    latent: numbers that latent attention (MLA) keeps of a token in a layer; 0 in other models, whose keys and values
    are those of `heads` heads of `head_numbers` numbers.
    experts, topk: of a MoE layer; None where the configuration does not say.
    """

    folder: Path
    dtype: str
    context: int
    vocabulary: int
    layers: int
    heads: int
    head_numbers: int
    latent: int
    hidden: int
    experts: int | None
    topk: int | None

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    def layer_token_bytes(self, attention_ranks: int) -> int:
        """Keys and values of one token in one layer, on one of `attention_ranks` ranks that share the heads."""
        if self.latent:
            return self.latent * self.element_bytes
        return 2 * max(1, self.heads // attention_ranks) * self.head_numbers * self.element_bytes


class ServerSizes(NamedTuple):
    """How a server divides its model, and the limits of its scheduler.

    tp: ranks of one model, or of one of its `stages`. attention_groups: of data-parallel attention. context: how each
    of them is divided. replicas: whole models side by side. prefill_tokens: most tokens of a prefill batch. running:
    most requests of all groups together. graph_batch: largest batch that the user wants graphs for; 0 for none at all,
    None to leave it to us. request_tokens: of each request in a decode batch, more than one with a draft model, which
    lies in `draft_folder` if not in that of the model. micro_batch: `--pp-max-micro-batch-size`.
    """

    tp: int
    attention_groups: int = 1
    context: ContextParallel = ContextParallel()
    replicas: int = 1
    running: int = HOST_RUNNING_REQUESTS
    prefill_tokens: int = 8192
    redundant_experts: int = 0
    graph_batch: int | None = None
    role: Role = "null"
    request_tokens: int = 1
    draft_folder: Path | None = None
    stages: int = 1
    micro_batch: int | None = None

    @property
    def draft_layers(self) -> int:
        """Layers of a draft model: the algorithms that are served have one."""
        return int(self.request_tokens > 1)

    @property
    def ranks(self) -> int:
        return self.tp * self.stages * self.replicas

    @property
    def attention_copies(self) -> int:
        """How often the ranks of one model hold the weights of attention."""
        return self.attention_groups * self.context.ranks

    @property
    def attention_ranks(self) -> int:
        return max(1, self.tp // self.attention_copies)


def model_sizes(
    folder: Path, value_of: Callable[[str], Any], *, dtype: str | None = None, context: int | None = None
) -> ModelSizes | None:
    """Sizes in a Hugging Face config, of which `value_of` gives the value under a name, or None.

    dtype, context: in place of those of the config. None where the config lacks what every model has.
    """
    needed = {
        name: value_of(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    }
    longest = context or value_of("max_position_embeddings")
    if longest is None or not all(isinstance(value, int) and value > 0 for value in needed.values()):
        return None
    found = dtype or str(value_of("dtype") or value_of("torch_dtype") or "bfloat16").removeprefix("torch.")
    latent = value_of("kv_lora_rank")
    return ModelSizes(
        folder=folder,
        dtype=found if found in ELEMENT_BYTES else "bfloat16",
        context=longest,
        vocabulary=needed["vocab_size"],
        layers=needed["num_hidden_layers"],
        heads=value_of("num_key_value_heads") or needed["num_attention_heads"],
        head_numbers=value_of("head_dim") or needed["hidden_size"] // needed["num_attention_heads"],
        latent=latent + (value_of("qk_rope_head_dim") or 0) if latent else 0,
        hidden=needed["hidden_size"],
        experts=expert_count(value_of),
        topk=value_of("num_experts_per_tok"),
    )


def draft_folder(settings: Any) -> Path | None:
    """The folder of a draft model of its own on this machine, by SGLang's settings."""
    path = settings.speculative_algorithm and settings.speculative_draft_model_path
    return Path(path) if path and path != settings.model_path and Path(path).is_dir() else None


def scheduling_of(model: ModelSizes, server: ServerSizes) -> Scheduling:
    """The limits of one attention group."""
    running = max(1, server.running // server.attention_groups)
    return Scheduling(running, model.context, model.vocabulary, server.request_tokens)


def _decode_batch(server: ServerSizes, running: int) -> int:
    return micro_batch(running, pp_size=server.stages, asked=server.micro_batch, role=server.role)


def graph_bytes(model: ModelSizes, server: ServerSizes) -> int:
    """Bytes that the graphs of one rank take: what the largest of them gathers.

    A server that drafts has three kinds, which share no memory: of the model, of a draft, and of what is read after it.
    """
    running = _decode_batch(server, scheduling_of(model, server).running)
    batch = running if server.graph_batch is None else min(running, server.graph_batch)
    if batch == 0:
        return 0
    chosen = choose_buckets(Limits(batch, 1, model.context, model.layer_token_bytes(server.attention_ranks)))
    return chosen.bytes * (3 if server.draft_layers else 1)


def estimate_server(model: ModelSizes, server: ServerSizes, options: Options | None) -> ServerEstimate:
    """options: None without `--ascend-moe`."""
    scheduling = scheduling_of(model, server)
    layers = -(-model.layers // server.stages) + server.draft_layers
    windows = _window_bytes(model, server, options, scheduling)
    folders = [model.folder] if server.draft_folder is None else [model.folder, server.draft_folder]
    weights, *draft = (
        weight_bytes(folder, model.element_bytes, keeps_experts=options is not None) for folder in folders
    )
    return ServerEstimate(
        ranks=server.ranks,
        weights=None
        if weights is None
        else server.replicas
        * sum(part.on_host(server.tp, server.attention_copies) for part in (weights, *draft) if part is not None),
        processes=server.ranks * RANK_PROCESS + OTHER_PROCESSES,
        needs=rank_needs(scheduling, windows, graph_bytes(model, server)),
        token=layers * model.layer_token_bytes(server.attention_ranks),
        scheduling=scheduling,
    )


def _window_bytes(model: ModelSizes, server: ServerSizes, options: Options | None, scheduling: Scheduling) -> int:
    """Bytes of the windows of one rank, as far as the configuration of the model tells."""
    if options is None or options.schedule == "collective" or model.experts is None or model.topk is None:
        return 0
    limits = SchedulerLimits(
        _decode_batch(server, scheduling.running),
        server.prefill_tokens,
        "--max-prefill-tokens",
        server.attention_ranks,
        server.role,
        server.request_tokens,
        server.stages,
        server.context,
    )
    try:
        parameters = ExchangeParameters(
            ranks=server.tp,
            num_experts=model.experts + server.redundant_experts,
            hidden=model.hidden,
            max_tokens=tokens_per_rank(options, limits),
            topk=model.topk,
            dtype=model.dtype,
            quant=None if options.quant == "none" else options.quant,
            distinct_topk=True,
            verify=options.verify,
        )
        return plan_window(sized(parameters, options, limits)).total_bytes
    except AscendMoeError:
        # What is wrong with it the ranks find with the real shapes of the layers, and say so by flag.
        return 0
