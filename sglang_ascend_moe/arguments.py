"""What the launcher does: flags, keyword arguments of `sglang.Engine`, and refusals before anything is started.

Every function here is a hook of the table in `plugin`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import msgspec

from sglang_ascend_moe import hooks, options
from sglang_ascend_moe.conflicts import refuse_conflicts
from sglang_ascend_moe.control.secret import read_secret
from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.npu_machine import QUANTISATIONS, refuse_machine_without_npu
from sglang_ascend_moe.platforms import HOST_ATTENTION
from sglang_ascend_moe.windows.layout import HIDDEN_MULTIPLE

# The backend name whose MoE layers SGLang's models treat as: scattered rows in, complete rows out.
A2A_BACKEND = "ascend_fuseep"

# What SGLang's EPLB takes for more layers than any model has.
ALL_LAYERS = 1_000_000


def add_flags_to_parser(_result: Any, parser: argparse.ArgumentParser) -> None:
    """After `ServerArgs.add_cli_args`: SGLang's parser knows the flags."""
    problem = hooks.failure()

    class Refuse(argparse.Action):
        """`--ascend-moe` when hooks are missing: the flags would be lost between the parser and the workers."""

        def __init__(self, **keywords: Any) -> None:
            super().__init__(nargs=0, **keywords)

        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            parser.error(problem)

    options.add_flags(parser, Refuse if problem else "store_true")


def attach_parsed_options(server_args: Any, _cls: type, args: argparse.Namespace) -> None:
    """After `ServerArgs.from_cli_args`: the parsed flags ride on the server arguments."""
    asked = options.from_namespace(args)
    if asked is not None:
        options.attach(server_args, asked)


def engine_server_args(**keywords: Any) -> Any:
    """In place of `ServerArgs(...)` in `sglang.Engine`: accepts the `ascend_moe*` keyword arguments."""
    from sglang.srt.server_args import ServerArgs

    asked = options.take_keywords(keywords)
    server_args = ServerArgs(**keywords)
    if asked is not None:
        if keywords.get("sleep_on_idle") is False:
            asked = msgspec.structs.replace(asked, stay_awake=True)
        options.attach(server_args, asked)
    return server_args


def resolve_once(original: Callable[[Any], None], server_args: Any) -> None:
    """Around `ServerArgs.resolve_once`: turns the MoE layers over to the exchange, or refuses and says why."""
    asked = options.options_of(server_args)
    if asked is None:
        return original(server_args)
    if not getattr(server_args, "_resolution_finished", False):
        hooks.require_all()
        # Each process reads it for itself; here so that a file that cannot be used is refused before any is started.
        read_secret(asked.secret_file)
        refuse_machine(server_args)
        # Before SGLang finds a problem of its own with the same flag, and after it has made up its mind.
        refuse_conflicts(server_args)
        _choose_backend(server_args)
    original(server_args)
    refuse_conflicts(server_args)
    refuse_other_backend(server_args)
    refuse_model(server_args)
    return None


def refuse_machine(server_args: Any) -> None:
    """Raise `Unsupported` if `--ascend-moe` cannot run on this machine with the device that is asked for."""
    device = str(server_args.device or "cpu").split(":")[0]
    asked = options.options_of(server_args)
    if device == "npu":
        refuse_machine_without_npu(asked)
        return
    if device != "cpu":
        raise Unsupported(f"--device {device}: --ascend-moe runs with --device cpu and --device npu")
    if asked.windows:
        raise Unsupported(f"{options.FLAGS['windows'].flag}: windows of the host need no provider; leave it out")
    if not hooks.on_host():
        raise Unsupported(
            "--device cpu: the host platform of sglang-ascend-moe is not active. It needs a machine without"
            " accelerator, SGLANG_USE_CPU_ENGINE unset, and ascend_moe_host in SGLANG_PLUGINS if that variable is set"
        )


def _choose_backend(server_args: Any) -> None:
    from sglang.srt.arg_groups.overrides import declare_resolution

    chosen = server_args.moe_a2a_backend
    if chosen not in (None, "none", A2A_BACKEND):
        raise InvalidInput(f"--moe-a2a-backend {chosen}: --ascend-moe is such a backend itself; give one of the two")
    # SGLang would silently make --ep-size equal to --tp-size for this backend.
    if server_args.ep_size not in (1, server_args.tp_size):
        raise Unsupported(
            f"--ep-size {server_args.ep_size} with --tp-size {server_args.tp_size}: the exchange spans the whole TP"
            f" group; use --ep-size {server_args.tp_size} or leave it out"
        )
    declare_resolution(server_args, "sglang-ascend-moe", moe_a2a_backend=A2A_BACKEND)
    # The default of the host platform keeps a decode step out of graphs; SGLang then switches them off.
    given = (server_args.attention_backend, server_args.decode_attention_backend, server_args.prefill_attention_backend)
    if hooks.on_host() and given == (None, None, None):
        declare_resolution(server_args, "sglang-ascend-moe", attention_backend=HOST_ATTENTION)
    let_idle_ranks_sleep(server_args)
    # All layers in one go, as a number: without one SGLang waits for a CUDA device to time the rebalance.
    if server_args.enable_eplb and server_args.eplb_rebalance_layers_per_chunk is None:
        declare_resolution(server_args, "sglang-ascend-moe", eplb_rebalance_layers_per_chunk=ALL_LAYERS)


def let_idle_ranks_sleep(server_args: Any) -> None:
    """On a host ranks that have nothing to do would each burn a core, and keep it from those that have.

    Raises `InvalidInput` if the user asks for both.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution

    stay_awake = options.options_of(server_args).stay_awake
    if stay_awake and server_args.sleep_on_idle:
        raise InvalidInput(f"{options.FLAGS['stay_awake'].flag} with --sleep-on-idle: give one of the two")
    if hooks.on_host() and not stay_awake:
        declare_resolution(server_args, "sglang-ascend-moe", sleep_on_idle=True)


def refuse_other_backend(server_args: Any) -> None:
    """Raise `Unsupported` if the MoE layers of the resolved `server_args` are not the exchange's after all."""
    from sglang.srt.arg_groups.overrides import resolving_view

    chosen = resolving_view(server_args).moe_a2a_backend
    if chosen != A2A_BACKEND:
        raise Unsupported(
            f"--ascend-moe: SGLang gave the MoE layers to --moe-a2a-backend {chosen} because of another option; its log"
            f" says which one. Leave that option out"
        )


def refuse_model(server_args: Any) -> None:
    """Raise `Unsupported` if the model of the resolved `server_args` cannot be served with `--ascend-moe`."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view

    settings = resolving_view(server_args)
    config = model_config_of(server_args)
    if config.quantization is not None and not (hooks.on_npu() and config.quantization in QUANTISATIONS):
        raise Unsupported(
            f"the checkpoint {settings.model_path} is quantised ({config.quantization}), which --ascend-moe does not"
            " support yet; use one in bfloat16 or float16"
        )
    text_config = config.hf_text_config
    experts = _expert_count(text_config)
    if experts is None:
        raise Unsupported(f"{settings.model_path} is not a mixture-of-experts model: serve it without --ascend-moe")
    redundant = settings.ep_num_redundant_experts
    if (experts + redundant) % settings.ep_size:
        among = f"{experts} experts and {redundant} redundant ones" if redundant else f"{experts} experts"
        raise Unsupported(
            f"{among} cannot be divided among --ep-size {settings.ep_size} ranks, which hold equally many each; choose"
            f" a --tp-size that divides {experts + redundant}, or --ep-num-redundant-experts"
            f" {redundant + -(experts + redundant) % settings.ep_size}"
        )
    if text_config.hidden_size % HIDDEN_MULTIPLE:
        raise Unsupported(
            f"the rows of {settings.model_path} have {text_config.hidden_size} elements (hidden_size), and the exchange"
            f" moves multiples of {HIDDEN_MULTIPLE}; serve it without --ascend-moe"
        )


def _expert_count(config: Any) -> int | None:
    """Routed experts per MoE layer of a Hugging Face config; each model family has a name of its own for it."""
    for name in ("num_experts", "n_routed_experts", "num_local_experts"):
        count = getattr(config, name, None)
        if isinstance(count, int) and count > 0:
            return count
    return None


def require_ready_workers(infos: list[dict[str, Any]], *_: Any) -> None:
    """After the launcher got the ready message of every scheduler: each must say that its exchange is open.

    A worker whose plugin did not load would otherwise serve with SGLang's own layer.
    """
    from sglang.srt.runtime_context import get_server_args

    if options.options_of(get_server_args()) is None:
        return
    silent = [index for index, info in enumerate(infos) if not info.get(options.READY_KEY)]
    if silent:
        raise Unsupported(
            f"--ascend-moe is not active in scheduler process {', '.join(map(str, silent))}: the plugin did not load"
            " there. SGLANG_PLUGINS, if it is set, must contain ascend_moe"
        )
