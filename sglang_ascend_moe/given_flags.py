"""What a command line gives SGLang, as far as refusals depend on it, read without SGLang: its import takes seconds.

Only the settings of the table below are read; SGLang knows some five hundred more.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from sglang_ascend_moe import options
from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.options import Options


class Setting(NamedTuple):
    """A field of SGLang's server arguments: its default, the type of its value, and its flags where they are not just
    its name. A setting of type bool takes no value on the command line, one of type list any number."""

    default: Any
    type: type = str
    aliases: tuple[str, ...] = ()


_OFF = Setting(default=False, type=bool)
_NOT_GIVEN = Setting(default=None)
_ONE = Setting(default=1, type=int)
_AUTO = Setting(default="auto")

SETTINGS: Mapping[str, Setting] = {
    "attn_cp_size": Setting(1, int, ("--attention-context-parallel-size",)),
    "cpu_offload_gb": Setting(0, int),
    "dcp_size": Setting(1, int, ("--decode-context-parallel-size",)),
    "deepep_config": _NOT_GIVEN,
    "deepep_dispatcher_output_dtype": _AUTO,
    "deepep_mode": _AUTO,
    "device": _NOT_GIVEN,
    "disable_attn_tp_gather": _OFF,
    "disaggregation_mode": Setting("null"),
    "dllm_algorithm": _NOT_GIVEN,
    "dwdp_size": _ONE,
    "elastic_ep_backend": _NOT_GIVEN,
    "enable_elastic_expert_backup": _OFF,
    "enable_fused_moe_sum_all_reduce": _OFF,
    "enable_lora": Setting(None, bool),
    "enable_mixed_chunk": _OFF,
    "enable_paged_experts": _OFF,
    "enable_pdmux": _OFF,
    "enable_prefill_cp": _OFF,
    "enable_single_batch_overlap": _OFF,
    "enable_torch_compile": _OFF,
    "enable_two_batch_overlap": _OFF,
    "enable_waterfill": _OFF,
    "encoder_only": _OFF,
    "enforce_shared_experts_fusion": _OFF,
    "ep_dispatch_algorithm": _NOT_GIVEN,
    "ep_num_redundant_experts": Setting(0, int),
    "ep_size": Setting(1, int, ("--expert-parallel-size", "--ep")),
    "eplb_min_rebalancing_utilization_threshold": Setting(1.0, float),
    "fuseep_mode": Setting(2, int),
    "grpc_mode": _OFF,
    "kt_weight_path": _NOT_GIVEN,
    "lora_paths": Setting(None, list),
    "model_path": Setting(None, str, ("--model",)),
    "modelopt_quant": _NOT_GIVEN,
    "moe_a2a_backend": Setting("none"),
    "moe_dp_size": Setting(1, int, ("--moe-data-parallel-size",)),
    "moe_runner_backend": _AUTO,
    "nnodes": _ONE,
    "offload_group_size": Setting(-1, int),
    "pp_size": Setting(1, int, ("--pipeline-parallel-size",)),
    "quantization": _NOT_GIVEN,
    "sleep_on_idle": _OFF,
    "smg_grpc_mode": _OFF,
    "speculative_algorithm": _NOT_GIVEN,
    "ssl_certfile": _NOT_GIVEN,
    "tokenizer_worker_num": _ONE,
    "tp_size": Setting(1, int, ("--tensor-parallel-size",)),
    "use_ray": _OFF,
}


class Given(NamedTuple):
    """A command line: `settings` by the names of SGLang's server arguments; `options` None without `--ascend-moe`."""

    settings: argparse.Namespace
    options: Options | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Of several spellings of a flag the first.
        said = re.sub(r"^argument ([^/:]+)[^:]*", r"\1", message)
        raise InvalidInput(f"{said}; SGLang's --help says what it takes")


def flags_of(name: str) -> tuple[str, ...]:
    """The flags that set a setting of the table."""
    return (f"--{name.replace('_', '-')}", *SETTINGS[name].aliases)


def spellings(flag: str) -> tuple[str, ...]:
    """The flags that set what `flag` sets; only itself if it is not in the table."""
    return next((flags for flags in map(flags_of, SETTINGS) if flag in flags), (flag,))


def read(words: Sequence[str]) -> Given:
    """Reads the flags of `python -m sglang.launch_server`; those that are not in the table are passed over.

    Raises `InvalidInput` for a value that is none, and as `options.from_namespace`.
    """
    parsed, _ = _parser().parse_known_args(list(words))
    asked = options.from_namespace(parsed)
    return Given(argparse.Namespace(**{name: getattr(parsed, name) for name in SETTINGS}), asked)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False)
    for name, setting in SETTINGS.items():
        kinds: dict[type, dict[str, Any]] = {bool: {"action": "store_true"}, list: {"nargs": "*"}}
        parser.add_argument(
            *flags_of(name), dest=name, default=setting.default, **kinds.get(setting.type, {"type": setting.type})
        )
    options.add_flags(parser)
    return parser
