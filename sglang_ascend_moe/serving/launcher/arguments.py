"""What the launcher does: flags, keyword arguments of `sglang.Engine`, and refusals before anything is started.

Functions whose description begins with After, Around or In place of are hooks: see `launcher_hooks`.
"""

import argparse
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.control.secret import read_secret
from sglang_ascend_moe.serving import hooks, options
from sglang_ascend_moe.serving.host_platform import HOST_ATTENTION
from sglang_ascend_moe.serving.launcher import command_line, refusals, replaced_settings, resolution
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.conflicts import refuse_conflicts
from sglang_ascend_moe.serving.launcher.context_parallelism import Attention, refuse_divided_prefill
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT
from sglang_ascend_moe.serving.launcher.initial_location import refuse_initial_location
from sglang_ascend_moe.serving.launcher.modelslim import expert_formats
from sglang_ascend_moe.serving.launcher.output_folders import refuse_unwritable_folders
from sglang_ascend_moe.serving.launcher.served_releases import allow_release, refuse_later_model
from sglang_ascend_moe.serving.launcher.written_values import refuse_written_values
from sglang_ascend_moe.serving.npu.machine_checks import refuse_machine_without_npu
from sglang_ascend_moe.serving.options import Options

logger = logging.getLogger(__name__)

# What SGLang's EPLB takes for more layers than any model has.
ALL_LAYERS = 1_000_000


def add_flags_to_parser(_result: Any, parser: argparse.ArgumentParser) -> None:
    """After `ServerArgs.add_cli_args`: SGLang's parser knows the flags."""
    problem = hooks.failure()

    class Refuse(argparse.Action):
        """`--ascend-moe` when hooks are missing: the flags would be lost between the parser and the workers."""

        def __init__(self, **keywords: Any) -> None:
            super().__init__(nargs=0, **keywords)

        def __call__(self, *_: Any) -> None:
            command_line.refuse(problem, CANNOT)

    options.add_flags(parser, Refuse if problem else "store_true")
    command_line.refuse_in_one_line(parser)


def attach_parsed_options(server_args: Any, _cls: type, args: argparse.Namespace) -> None:
    """After `ServerArgs.from_cli_args`: the parsed flags ride on the server arguments."""
    command_line.mark(server_args)
    with command_line.refusals_end(server_args):
        asked = options.from_namespace(args)
    if asked is not None:
        options.attach(server_args, asked)


def engine_server_args(**keywords: Any) -> Any:
    """In place of `ServerArgs(...)` in `sglang.Engine`: accepts the `ascend_moe*` keyword arguments."""
    from sglang.srt.server_args import ServerArgs

    asked = take_engine_options(keywords)
    server_args = ServerArgs(**keywords)
    if asked is not None:
        options.attach(server_args, asked)
    return server_args


def take_engine_options(keywords: dict[str, Any]) -> Options | None:
    """Remove the `ascend_moe*` keywords of `sglang.Engine` from `keywords`; returns and raises as `take_keywords`."""
    asked = options.take_keywords(keywords)
    if asked is not None and keywords.get("sleep_on_idle") is False:
        return msgspec.structs.replace(asked, stay_awake=True)
    return asked


def resolve_once(original: Callable[[Any], None], server_args: Any) -> None:
    """Around `ServerArgs.resolve_once`: turns the MoE layers over to the exchange, or refuses and says why."""
    asked = options.options_of(server_args)
    if asked is None:
        return original(server_args)
    if not resolution.is_resolved(server_args):
        with command_line.refusals_end(server_args):
            # Each process reads it for itself; here so that a file that cannot be used is refused before one starts.
            read_secret(asked.secret_file)
            settings = resolution.settings_of(server_args)
            asked = replaced_settings.with_schedule(settings, asked)
            options.attach(server_args, asked)
            refusals.refuse_flags(settings, asked, os.environ)
            refuse_written_values(settings)
            # Ranks open theirs when weights are loaded.
            refuse_unwritable_folders(asked)
        with command_line.refusals_end(server_args, CANNOT):
            hooks.require_all()
            warning = allow_release(asked, device_of(server_args))
            refuse_machine(server_args, asked)
        if warning:
            logger.warning("%s", warning)
        if line := replaced_settings.replaced(settings, asked):
            logger.info("%s", line)
        _choose_backend(server_args, asked)
    with command_line.refusals_end(server_args):
        refuse_attention(server_args)
        original(server_args)
        take_back_layers(server_args)
        # Once more after SGLang has made up its mind.
        refuse_conflicts(server_args)
        refuse_other_backend(server_args)
        refuse_model(server_args)
        refuse_prefill_of_model(server_args)
    return None


def check_server_args(original: Callable[[Any], None], server_args: Any) -> None:
    """Around `ServerArgs.check_server_args`: what SGLang refuses last."""
    with contextlib.ExitStack() as stack:
        if options.options_of(server_args) is not None:
            stack.enter_context(command_line.refusals_end(server_args))
        original(server_args)


def refuse_machine(server_args: Any, asked: Options) -> None:
    """Raise `Unsupported` if `--ascend-moe` cannot run on this machine with the device that is asked for."""
    device = device_of(server_args)
    refusals.refuse_options(asked, device)
    if device == "npu":
        refuse_machine_without_npu(asked)
    elif not hooks.on_host():
        raise Unsupported(
            "--device cpu: the host platform of sglang-ascend-moe is not active. It needs a machine without"
            " accelerator, SGLANG_USE_CPU_ENGINE unset, and ascend_moe_host in SGLANG_PLUGINS if that variable is set"
        )


def _choose_backend(server_args: Any, asked: Options) -> None:
    resolution.declare(server_args, moe_a2a_backend=replaced_settings.A2A_BACKEND)
    # The default of the host platform keeps a decode step out of graphs; SGLang then switches them off.
    given = (server_args.attention_backend, server_args.decode_attention_backend, server_args.prefill_attention_backend)
    if hooks.on_host() and given == (None, None, None):
        resolution.declare(server_args, attention_backend=HOST_ATTENTION)
    let_idle_ranks_sleep(server_args, asked)
    # All layers in one go, as a number: without one SGLang waits for a CUDA device to time the rebalance.
    if server_args.enable_eplb and server_args.eplb_rebalance_layers_per_chunk is None:
        resolution.declare(server_args, eplb_rebalance_layers_per_chunk=ALL_LAYERS)


def let_idle_ranks_sleep(server_args: Any, asked: Options) -> None:
    """On a host ranks that have nothing to do would each burn a core, and keep it from those that have."""
    if hooks.on_host() and not asked.stay_awake:
        resolution.declare(server_args, sleep_on_idle=True)


def take_back_layers(server_args: Any) -> None:
    """With context-parallel prefill of latent attention SGLang gives the MoE layers to DeepEP, whatever was chosen."""
    settings = resolution.settings_of(server_args)
    if settings.enable_prefill_cp and settings.moe_a2a_backend == "deepep":
        resolution.declare(server_args, moe_a2a_backend=replaced_settings.A2A_BACKEND)


def refuse_other_backend(server_args: Any) -> None:
    """Raise `Unsupported` if the MoE layers of the resolved `server_args` are not the exchange's after all."""
    chosen = resolution.settings_of(server_args).moe_a2a_backend
    if chosen != replaced_settings.A2A_BACKEND:
        raise Unsupported(
            f"--ascend-moe: SGLang gave the MoE layers to --moe-a2a-backend {chosen} because of another option; its log"
            f" says which one. Leave that option out"
        )


def refuse_attention(server_args: Any) -> None:
    """Raise `Unsupported` on a host whose SGLang has no attention for the model; it would ask for a CUDA device."""
    from sglang.srt.configs.model_config import is_deepseek_dsa

    if not hooks.on_npu() and is_deepseek_dsa(resolution.model_config_of(server_args).hf_config):
        raise Unsupported(
            f"the attention of {resolution.settings_of(server_args).model_path} is sparse (DSA), which SGLang has for"
            " NPUs and not for hosts; serve it on NPUs, or a model with other attention"
        )


def refuse_model(server_args: Any) -> None:
    """Raise `Unsupported` if the model of the resolved `server_args` cannot be served with `--ascend-moe`."""
    settings = resolution.settings_of(server_args)
    config = resolution.model_config_of(server_args)
    text_config = config.hf_text_config
    refuse_later_model(settings.model_path, config.hf_config.architectures or ())
    model = refusals.Model(
        path=settings.model_path,
        quantisation=config.quantization,
        experts=refusals.expert_count(lambda name: getattr(text_config, name, None)),
        hidden=getattr(text_config, "hidden_size", None),
        layers=getattr(text_config, "num_hidden_layers", None),
        expert_formats=expert_formats(Path(settings.model_path)),
    )
    division = refusals.Division(settings.ep_size, settings.ep_num_redundant_experts)
    refusals.refuse_model(model, division, on_npu=hooks.on_npu())
    refuse_initial_location(settings.init_expert_location, model.located(division), read_tensors=True)


def refuse_prefill_of_model(server_args: Any) -> None:
    """Raises as `refuse_divided_prefill`, for the model of the resolved `server_args`."""
    from sglang.srt.configs.model_config import is_deepseek_dsa, is_deepseek_v4

    settings = resolution.settings_of(server_args)
    if settings.enable_prefill_cp:
        config = resolution.model_config_of(server_args).hf_config
        latent = resolution.attends_latently(server_args)
        attention = Attention(latent, is_deepseek_dsa(config) or is_deepseek_v4(config))
        refuse_divided_prefill(settings, attention, os.environ, on_npu=hooks.on_npu())


def require_ready_workers(infos: list[dict[str, Any]], *_: Any) -> None:
    """After the launcher got the ready message of every scheduler: each must say that its exchange is open.

    A worker whose plugin did not load would otherwise serve with SGLang's own layer.
    """
    from sglang.srt.runtime_context import get_server_args

    server_args = get_server_args()
    # Taken out of the times, which SGLang shows.
    silent = [
        index for index, info in enumerate(infos) if not info[options.STARTUP_TIMES].pop(options.READY_KEY, False)
    ]
    if not silent or options.options_of(server_args) is None:
        return
    with command_line.refusals_end(server_args, CANNOT):
        raise Unsupported(
            f"--ascend-moe is not active in scheduler process {', '.join(map(str, silent))}: the plugin did not load"
            " there. SGLANG_PLUGINS, if it is set, must contain ascend_moe"
        )
