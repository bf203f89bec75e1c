"""What can be refused of a server before it starts, by its flags, its options and the config of its model.

Pure functions: the launcher calls them with SGLang's server arguments, commands with a command line that is no server
yet. Each refusal of flags begins with the flag that it is about.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.exchange.control.network import parse_address
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.attention_groups import attention_groups
from sglang_ascend_moe.serving.launcher.conflicts import refuse_settings
from sglang_ascend_moe.serving.launcher.context_parallelism import refuse_context_flags
from sglang_ascend_moe.serving.launcher.initial_location import Experts
from sglang_ascend_moe.serving.launcher.replaced_settings import REPLACED_BACKENDS
from sglang_ascend_moe.serving.launcher.served_releases import refuse_later_features
from sglang_ascend_moe.serving.options import FLAGS, Options
from sglang_ascend_moe.windows.layout import HIDDEN_MULTIPLE

NPU_QUANTISATIONS = ("modelslim", "compressed-tensors")
"""Formats of SGLang whose W8A8 and W4A8 weights its Ascend runner computes with; each layer is looked at when it is
loaded."""

EXPERT_FORMATS = frozenset(("W8A8_DYNAMIC", "W4A8_DYNAMIC", "FLOAT"))
"""What modelslim calls the formats of experts that are served."""

EXPERT_NAMES = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_moe_experts")
"""What model families call the number of routed experts of a layer. A router's number comes before the names that some
families use for something else."""


# Settings of which a server has at least one, if it is told how many: ranks, requests, tokens.
_SIZES = (
    "tp_size", "ep_size", "dp_size", "attn_dp_size", "pp_size", "pp_max_micro_batch_size",
    "max_running_requests", "max_total_tokens", "context_length", "page_size",
)  # fmt: skip

_ATTENTION = ("attention_backend", "decode_attention_backend", "prefill_attention_backend")
ATTENTION_OF_ACCELERATORS = frozenset(
    (
        "fa3", "fa4", "flashinfer", "llada2_cfg_flashinfer", "flashmla", "trtllm_mla", "cutedsl_mla", "tokenspeed_mla",
        "trtllm_mha", "hpc_ops", "minicpm_flashattn", "minicpm_flashinfer", "aiter", "wave", "ascend", "intel_xpu",
    )
)  # fmt: skip
"""What SGLang lists as made for one kind of accelerator."""


class Model(NamedTuple):
    """What its configuration says of a model: None where it does not say it, or there is none.

    path: as it was given. quantisation: SGLang's name of the format of its weights. experts: routed ones of a layer.
    hidden: elements of a row. layers: with and without experts. expert_formats: of the routed experts, in modelslim's
    words; empty if nothing says it. multiplied_out: a host dequantises the weights when it loads them.
    """

    path: str
    quantisation: str | None
    experts: int | None
    hidden: int | None
    layers: int | None = None
    expert_formats: frozenset[str] = frozenset()
    multiplied_out: bool = False

    def located(self, division: "Division") -> Experts:
        """What `--init-expert-location` has to place, of a model that `refuse_model` lets pass."""
        return Experts(self.layers, self.experts or 0, division.redundant)


class Division(NamedTuple):
    """How many ranks share the experts of a layer, `redundant` ones included.

    shown_as, set_by, redundant_set_by: what messages call the number of ranks, and the flags that set both numbers.
    """

    ranks: int
    redundant: int
    shown_as: str = "--ep-size"
    set_by: str = "--tp-size"
    redundant_set_by: str = "--ep-num-redundant-experts"


def refuse_flags(settings: Any, options: Options, environment: Mapping[str, str]) -> None:
    """Raise `Unsupported` or `InvalidInput` if a server with these flags would not be started.

    settings: by the names that SGLang's server arguments have. environment: of the server's processes.
    """
    refuse_sizes(settings)
    refuse_options(options, device_of(settings))
    # Before SGLang finds a problem of its own with the same flag.
    refuse_settings(settings, environment)
    refuse_later_features(settings)
    refuse_nodes(settings)
    refuse_combinations(settings, options)


def refuse_sizes(settings: Any) -> None:
    """Raise `InvalidInput` for a number of ranks, requests or tokens, or a share of memory, that cannot be."""
    for name in _SIZES:
        size = getattr(settings, name, None)
        if size is not None and size < 1:
            raise InvalidInput(f"--{name.replace('_', '-')} {size}: must be at least 1")
    share = settings.mem_fraction_static
    if share is not None and not 0 < share <= 1:
        raise InvalidInput(f"--mem-fraction-static {share}: must be above 0 and at most 1")


def refuse_combinations(settings: Any, options: Options) -> None:
    """Raise `InvalidInput` or `Unsupported` for flags that do not go together."""
    chosen = settings.moe_a2a_backend
    if chosen not in (None, *REPLACED_BACKENDS):
        raise InvalidInput(
            f"--moe-a2a-backend {chosen}: --ascend-moe is such a backend itself, in place of"
            f" {', '.join(REPLACED_BACKENDS)}; give one of the two"
        )
    # SGLang would silently make --ep-size equal to --tp-size for this backend.
    if settings.ep_size not in (1, settings.tp_size):
        raise Unsupported(
            f"--ep-size {settings.ep_size} with --tp-size {settings.tp_size}: the exchange spans the whole TP group;"
            f" use --ep-size {settings.tp_size} or leave it out"
        )
    groups = attention_groups(settings)
    flag = "--dp-size" if settings.enable_dp_attention and groups == settings.dp_size else "--attn-dp-size"
    if settings.tp_size % groups:
        raise InvalidInput(
            f"{flag} {groups} with --tp-size {settings.tp_size}: groups of attention have equally many ranks; choose"
            f" one that divides {settings.tp_size}"
        )
    refuse_context_flags(settings, groups)
    if device_of(settings) == "cpu":
        for name in _ATTENTION:
            if getattr(settings, name) in ATTENTION_OF_ACCELERATORS:
                raise InvalidInput(
                    f"--{name.replace('_', '-')} {getattr(settings, name)}: is for accelerators; leave it out on a host"
                )
    if options.stay_awake and settings.sleep_on_idle:
        raise InvalidInput(f"{FLAGS['stay_awake'].flag} with --sleep-on-idle: give one of the two")


def refuse_nodes(settings: Any) -> None:
    """Raise `InvalidInput` for a server of several nodes that cannot meet."""
    nodes, rank = settings.nnodes or 1, settings.node_rank or 0
    if not 0 <= rank < nodes:
        raise InvalidInput(f"--node-rank {rank} with --nnodes {nodes}: must be from 0 to {nodes - 1}")
    if nodes == 1:
        return
    if not settings.dist_init_addr:
        raise InvalidInput(
            f"--nnodes {nodes}: give --dist-init-addr HOST:PORT, an address of node 0, the same on every node"
        )
    parse_address(settings.dist_init_addr)
    ranks, stages = settings.tp_size, settings.pp_size
    if not nodes_divide(nodes, ranks, stages):
        within = f" and --pp-size {stages}" if stages > 1 else ""
        number = f"{stages}, or {stages} times one that divides {ranks}" if stages > 1 else str(ranks)
        raise InvalidInput(
            f"--nnodes {nodes} with --tp-size {ranks}{within}: nodes have equally many ranks; choose a number that"
            f" divides {number}"
        )


def nodes_divide(nodes: int, ranks: int, stages: int) -> bool:
    """Whether SGLang can place so many `stages` of `ranks` each: whole ones on a node, or each on as many nodes."""
    if nodes <= stages:
        return stages % nodes == 0
    return nodes % stages == 0 and ranks % (nodes // stages) == 0


def refuse_options(options: Options, device: str) -> None:
    """Raise `Unsupported` for a device that `--ascend-moe` does not run with, and for an option that it does not have
    there."""
    if device not in ("cpu", "npu"):
        raise Unsupported(f"--device {device}: --ascend-moe runs with --device cpu and --device npu")
    if device == "cpu" and options.windows:
        raise Unsupported(f"{FLAGS['windows'].flag}: windows of the host need no provider; leave it out")
    if device == "npu" and options.host_memory:
        raise Unsupported(f"{FLAGS['host_memory'].flag}: --device npu takes the memory of NPUs; leave it out")
    if device == "npu" and options.verify:
        raise Unsupported(f"{FLAGS['verify'].flag}: the Ascend kernels make no checksums; leave it out")
    if device == "npu" and options.schedule == "collective":
        raise Unsupported(
            f"{FLAGS['schedule'].flag} collective: the baseline moves tensors of the host only; leave it out"
        )


def refuse_model(model: Model, division: Division, *, on_npu: bool) -> None:
    """Raise `Unsupported` if `--ascend-moe` cannot serve the model, or not on so many ranks."""
    served = model.quantisation in NPU_QUANTISATIONS if on_npu else model.multiplied_out
    if model.quantisation is not None and not served:
        instead = "" if on_npu else "a folder of this machine with one in fp8 in blocks or "
        raise Unsupported(
            f"the checkpoint {model.path} is quantised ({model.quantisation}), which --ascend-moe does not support yet;"
            f" use one in bfloat16 or float16, or {instead}in W8A8 or W4A8 of {' or '.join(NPU_QUANTISATIONS)}"
        )
    if others := sorted(model.expert_formats - EXPERT_FORMATS):
        raise Unsupported(
            f"the experts of {model.path} are {' and '.join(others)} (modelslim), which --ascend-moe does not compute"
            " with yet; use a checkpoint in W8A8_DYNAMIC, in W4A8_DYNAMIC with a scale per channel, or in bfloat16"
        )
    if model.experts is None:
        raise Unsupported(f"{model.path} is not a mixture-of-experts model: serve it without --ascend-moe")
    redundant = division.redundant
    if (model.experts + redundant) % division.ranks:
        among = f"{model.experts} experts" + (f" and {redundant} redundant ones" if redundant else "")
        enough = redundant + -(model.experts + redundant) % division.ranks
        added = f", or {division.redundant_set_by} {enough}" if division.redundant_set_by else ""
        raise Unsupported(
            f"{division.shown_as} {division.ranks}: {among} cannot be divided among so many ranks, which hold equally"
            f" many each; choose a {division.set_by} that divides {model.experts + redundant}{added}"
        )
    if model.hidden is not None and model.hidden % HIDDEN_MULTIPLE:
        raise Unsupported(
            f"the rows of {model.path} have {model.hidden} elements (hidden_size), and the exchange moves multiples of"
            f" {HIDDEN_MULTIPLE}; serve it without --ascend-moe"
        )


def expert_count(value_of: Callable[[str], Any]) -> int | None:
    """Routed experts of an MoE layer, None if there are none; `value_of` gives what a config has under a name, or None.

    Of a list with a number per layer the greatest.
    """
    for name in EXPERT_NAMES:
        value = value_of(name)
        counts = value if isinstance(value, list) else [value]
        if all(isinstance(count, int) for count in counts) and (greatest := max(counts, default=0)) > 0:
            return greatest
    return None
