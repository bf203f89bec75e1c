"""Settings of SGLang that `--ascend-moe` does not work with: a table, and the refusal that names what it finds.

The table is read of a server's resolved arguments, and of a command line that is no server yet (`given_flags`).
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.launcher import resolution
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.http_processes import APP
from sglang_ascend_moe.serving.launcher.http_processes import VARIABLE as HTTP_APP
from sglang_ascend_moe.serving.sglang_release import reaches


class Conflict(NamedTuple):
    """A setting of SGLang that `--ascend-moe` does not work with: how to see it, why, and what to use instead.

    `found` takes settings by the names that SGLang's server arguments have or, where `flag` is a variable of the
    environment, the environment. since: the first release of SGLang that has the setting; empty if all have it.
    """

    flag: str
    found: Callable[[Any], bool]
    cause: str
    instead: str
    since: str = ""

    def refusal(self, settings: Any) -> str:
        """What is wrong with `settings`; begins with the flag."""
        value = getattr(settings, self.flag.removeprefix("--").replace("-", "_"), True)
        shown = f" {value}" if isinstance(value, int | float | str) and value is not True else ""
        return f"{self.flag}{shown} does not work with --ascend-moe: {self.cause}. Instead: {self.instead}"


def _is_on(name: str) -> Callable[[Any], bool]:
    return lambda settings: bool(getattr(settings, name))


def _above_one(name: str) -> Callable[[Any], bool]:
    return lambda settings: (getattr(settings, name) or 1) > 1


def _above_zero(name: str) -> Callable[[Any], bool]:
    return lambda settings: (getattr(settings, name) or 0) > 0


def _other_than(name: str, default: Any) -> Callable[[Any], bool]:
    return lambda settings: getattr(settings, name) not in (None, default)


def _is_true(variable: str) -> Callable[[Mapping[str, str]], bool]:
    # As SGLang reads it; it refuses what is neither one of these nor a word for false.
    return lambda environment: environment.get(variable, "").lower() in ("true", "1", "yes", "y")


def _has_adapters(settings: Any) -> bool:
    # With --lora-paths SGLang switches --enable-lora on, unless an engine was told not to.
    return bool(settings.lora_paths) and settings.enable_lora is not False


def _pairs_over_tls(settings: Any) -> bool:
    return bool(settings.ssl_certfile) and settings.disaggregation_mode != "null"


def _asks_for_keys_in_several_processes(settings: Any) -> bool:
    return bool(settings.api_key) and settings.tokenizer_worker_num > 1


def _has_another_app(environment: Mapping[str, str]) -> bool:
    return environment.get(HTTP_APP, APP) != APP


def _quantised_for_the_host(settings: Any) -> bool:
    # On an NPU the checkpoint decides (`refuse_model`), and each layer is looked at when it is loaded.
    return bool(settings.quantization) and device_of(settings) != "npu"


def _other_speculation(settings: Any) -> bool:
    algorithm = settings.speculative_algorithm
    return bool(algorithm) and algorithm.upper() not in SPECULATION


def _speculates_with(found: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda settings: bool(settings.speculative_algorithm) and found(settings)


def _quantises_drafts_otherwise(settings: Any) -> bool:
    # SGLang gives the draft model, if it is not said otherwise, the quantisation of the model.
    return settings.speculative_draft_model_quantization not in (None, "unquant", settings.quantization)


def _drafts_in_stages(settings: Any) -> bool:
    return settings.pp_size > 1 and bool(settings.speculative_algorithm)


def _moves_experts_in_stages(settings: Any) -> bool:
    return settings.pp_size > 1 and bool(settings.enable_eplb)


def _branches_on_npu(settings: Any) -> bool:
    return device_of(settings) == "npu" and (settings.speculative_eagle_topk or 1) > 1


SPECULATION = ("EAGLE", "EAGLE3", "NEXTN")
"""Algorithms of `--speculative-algorithm` that are served; SGLang calls NEXTN EAGLE, too."""

CONFLICTS = (
    Conflict(
        "--speculative-algorithm",
        _other_speculation,
        "only EAGLE, EAGLE3 and NEXTN were compared with SGLang's own",
        "one of these, or serve without speculative decoding",
    ),
    Conflict(
        "--speculative-adaptive",
        _is_on("speculative_adaptive"),
        "each rank would choose the number of drafts by its own batch, and make other exchanges than the others",
        "--speculative-num-steps",
    ),
    Conflict(
        "SGLANG_ENABLE_DP_SPEC_PREFILL_COORDINATION",
        _is_true("SGLANG_ENABLE_DP_SPEC_PREFILL_COORDINATION"),
        "some ranks would verify drafts while others prefill, and make other exchanges",
        "unset the variable",
    ),
    Conflict(
        "--enable-multi-layer-eagle",
        _is_on("enable_multi_layer_eagle"),
        "drafts of several layers were never compared with SGLang's own",
        "leave it out",
    ),
    Conflict(
        "--speculative-use-rejection-sampling",
        _is_on("speculative_use_rejection_sampling"),
        "SGLang computes it with a kernel for accelerators",
        "leave it out",
    ),
    *(
        Conflict(
            f"--speculative-{name}",
            _other_than(f"speculative_{name.replace('-', '_')}", default),
            "the draft model is served as the model is",
            "leave it out",
        )
        for name, default in (
            ("moe-a2a-backend", "ascend_fuseep"),
            ("moe-runner-backend", "auto"),
            ("draft-attention-backend", None),
            ("draft-window-size", None),
            ("token-map", None),
        )
    ),
    Conflict(
        "--speculative-draft-model-quantization",
        _quantises_drafts_otherwise,
        "the draft model is served as the model is, or unquantised",
        "leave it out, or unquant",
    ),
    Conflict(
        "--speculative-eagle-topk",
        _speculates_with(_branches_on_npu),
        "on an NPU SGLang verifies chains only, and takes every tree for one",
        "--speculative-eagle-topk 1",
    ),
    Conflict(
        "--enable-two-batch-overlap",
        _is_on("enable_two_batch_overlap"),
        "it keeps two exchanges of one layer in flight",
        "leave it out",
    ),
    Conflict(
        "--enable-single-batch-overlap",
        _is_on("enable_single_batch_overlap"),
        "it splits the expert computation that the exchange surrounds",
        "leave it out",
    ),
    Conflict(
        "--enable-mixed-chunk",
        _is_on("enable_mixed_chunk"),
        "a batch would be decode and prefill at once, and the schedule is chosen per batch",
        "leave it out",
    ),
    Conflict(
        "--enable-pdmux", _is_on("enable_pdmux"), "it runs a prefill and a decode batch side by side", "leave it out"
    ),
    Conflict(
        "--moe-dp-size",
        _above_one("moe_dp_size"),
        "SGLang's backend that the exchange takes the place of has each expert once on all ranks",
        "--ep-num-redundant-experts for copies of experts",
    ),
    Conflict(
        "--dcp-size",
        _above_one("dcp_size"),
        "hosts have no attention that divides keys, and on NPUs it was never compared with SGLang's own",
        "--attn-dp-size, or --attn-cp-size for prefill",
    ),
    Conflict(
        "--pp-size",
        _drafts_in_stages,
        "drafts, which SGLang makes in the last stage only, were never compared with SGLang's own",
        "leave out --speculative-algorithm, or use --tp-size",
    ),
    Conflict(
        "--enable-eplb",
        _moves_experts_in_stages,
        "with --pp-size SGLang counts tokens and moves experts as if the ranks of all stages shared every layer",
        "leave it out, or use --tp-size in place of --pp-size",
    ),
    Conflict(
        "--disable-attn-tp-gather",
        _is_on("disable_attn_tp_gather"),
        "batches would not be padded to an equal share of rows for every rank",
        "leave it out",
    ),
    Conflict(
        "--dllm-algorithm",
        _is_on("dllm_algorithm"),
        "the steps of a diffusion model are neither a prefill nor a decode batch",
        "serve it without --ascend-moe",
    ),
    Conflict(
        "--is-embedding",
        _is_on("is_embedding"),
        "no server that embeds texts in place of continuing them was compared with SGLang's own",
        "serve it without --ascend-moe",
    ),
    Conflict(
        "--dwdp-size", _above_one("dwdp_size"), "it replicates the experts instead of their tokens", "leave it out"
    ),
    Conflict("--use-ray", _is_on("use_ray"), "workers must be processes of this machine", "leave it out"),
    Conflict(
        "--quantization",
        _quantised_for_the_host,
        "the experts are computed in the dtype of the rows",
        "leave it out; checkpoints in fp8, W8A8 and W4A8 say so themselves",
    ),
    Conflict(
        "--modelopt-quant",
        _is_on("modelopt_quant"),
        "the experts are computed in the dtype of the rows",
        "a checkpoint in bfloat16 or float16",
    ),
    Conflict(
        "--moe-runner-backend",
        _other_than("moe_runner_backend", "auto"),
        "the experts run on the rows of the window, without SGLang's runners",
        "leave it out",
    ),
    Conflict(
        "--enable-fused-moe-sum-all-reduce",
        _is_on("enable_fused_moe_sum_all_reduce"),
        "it belongs to a runner of SGLang that is not used",
        "leave it out",
    ),
    Conflict("--deepep-config", _is_on("deepep_config"), "it tunes DeepEP, which is not used", "leave it out"),
    Conflict(
        "--deepep-dispatcher-output-dtype",
        _other_than("deepep_dispatcher_output_dtype", "auto"),
        "it is the format of DeepEP's rows, which is not used",
        "--ascend-moe-quant",
    ),
    Conflict(
        "--fuseep-mode",
        _other_than("fuseep_mode", 2),
        "it chooses a fused kernel of SGLang, which is not used",
        "leave it out",
    ),
    Conflict(
        "--enable-waterfill",
        _is_on("enable_waterfill"),
        "SGLang gives the MoE layers to DeepEP for it",
        "leave it out",
    ),
    Conflict(
        "--enforce-shared-experts-fusion",
        _is_on("enforce_shared_experts_fusion"),
        "shared experts stay outside of the exchange",
        "--disable-shared-experts-fusion",
    ),
    Conflict(
        "--ep-dispatch-algorithm",
        lambda settings: settings.ep_dispatch_algorithm == "lp",
        "SGLang computes it with a CUDA kernel",
        "--ep-dispatch-algorithm static or dynamic",
    ),
    Conflict(
        "--eplb-min-rebalancing-utilization-threshold",
        lambda settings: settings.eplb_min_rebalancing_utilization_threshold < 1,
        "SGLang averages the utilization on a CUDA device",
        "leave it out, and raise --eplb-rebalance-num-iterations to rebalance less often",
    ),
    Conflict(
        "--elastic-ep-backend", _is_on("elastic_ep_backend"), "the ranks of an exchange are fixed", "leave it out"
    ),
    Conflict(
        "--enable-elastic-expert-backup",
        _is_on("enable_elastic_expert_backup"),
        "it belongs to elastic expert parallelism, and the ranks of an exchange are fixed",
        "leave it out",
    ),
    Conflict(
        "--enable-paged-experts",
        _is_on("enable_paged_experts"),
        "experts must stay in memory",
        "leave it out",
        since="0.5.23",
    ),
    Conflict(
        "--cpu-offload-gb", _above_zero("cpu_offload_gb"), "the experts are read where they were loaded", "leave it out"
    ),
    Conflict(
        "--offload-group-size",
        _above_zero("offload_group_size"),
        "the experts are read where they were loaded",
        "leave it out",
    ),
    Conflict(
        "--tokenizer-worker-num",
        _asks_for_keys_in_several_processes,
        "SGLang asks for API keys where one process answers HTTP only",
        "leave it out, or let what stands before the server ask for keys",
    ),
    Conflict(
        HTTP_APP,
        _has_another_app,
        "every process for HTTP has to check requests for the ranks",
        "unset the variable",
    ),
    *(
        Conflict(
            flag,
            _is_on(flag.removeprefix("--").replace("-", "_")),
            "that server starts the ranks in a way of its own, and would not notice a rank without this package",
            "serve over HTTP",
        )
        for flag in ("--smg-grpc-mode", "--grpc-mode")
    ),
    Conflict(
        "SGLANG_RUST_SERVER",
        _is_true("SGLANG_RUST_SERVER"),
        "that server checks no token ids for the ranks",
        "unset the variable",
    ),
    Conflict("--encoder-only", _is_on("encoder_only"), "an encoder has no MoE layers", "leave out --ascend-moe"),
    Conflict(
        "--ssl-certfile",
        _pairs_over_tls,
        "prefill and decode instances ask each other over plain HTTP what they are",
        "leave it out of the instances, and give it to what stands before the router",
    ),
    Conflict("--enable-lora", _is_on("enable_lora"), "adapters change the MoE layer", "serve merged weights"),
    Conflict("--lora-paths", _has_adapters, "adapters change the MoE layer", "serve merged weights"),
    Conflict("--kt-weight-path", _is_on("kt_weight_path"), "it takes experts out of the MoE layer", "leave it out"),
    Conflict(
        "--enable-torch-compile",
        _is_on("enable_torch_compile"),
        "the exchange is not an operator that torch.compile can trace",
        "leave it out",
    ),
)


def conflicts_of(settings: Any, environment: Mapping[str, str]) -> list[Conflict]:
    """What a server would have that `--ascend-moe` does not work with.

    settings: of the server, by the names that SGLang's server arguments have. environment: of its processes.
    """
    return [
        one
        for one in CONFLICTS
        if reaches(one.since) and one.found(settings if one.flag.startswith("--") else environment)
    ]


def refuse_settings(settings: Any, environment: Mapping[str, str]) -> None:
    """Raise `Unsupported`, naming flag or variable, for the first of `conflicts_of`."""
    for conflict in conflicts_of(settings, environment):
        raise Unsupported(conflict.refusal(settings))


def refuse_conflicts(server_args: Any) -> None:
    """Raise `Unsupported` if `server_args` (resolved or not) ask for what `--ascend-moe` does not work with."""
    refuse_settings(resolution.settings_of(server_args), os.environ)
