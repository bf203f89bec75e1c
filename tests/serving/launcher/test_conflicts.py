"""What cannot be served with `--ascend-moe` is refused before anything starts: by name, with cause and remedy."""

import argparse
from typing import Any

import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.launcher import arguments, conflicts
from sglang_ascend_moe.serving.launcher.http_processes import VARIABLE
from sglang_ascend_moe.serving.launcher.replaced_settings import A2A_BACKEND
from sglang_ascend_moe.serving.options import Options, attach

# A value of each flag of the table that has to be refused.
SETTINGS = {
    "--speculative-algorithm": {"speculative_algorithm": "NGRAM"},
    "--speculative-adaptive": {"speculative_adaptive": True},
    "--enable-multi-layer-eagle": {"enable_multi_layer_eagle": True},
    "--speculative-use-rejection-sampling": {"speculative_use_rejection_sampling": True},
    "--speculative-moe-a2a-backend": {"speculative_moe_a2a_backend": "none"},
    "--speculative-moe-runner-backend": {"speculative_moe_runner_backend": "triton"},
    "--speculative-draft-attention-backend": {"speculative_draft_attention_backend": "triton"},
    "--speculative-draft-model-quantization": {"speculative_draft_model_quantization": "fp8"},
    "--speculative-draft-window-size": {"speculative_draft_window_size": 512},
    "--speculative-token-map": {"speculative_token_map": "hot_tokens.pt"},
    "--speculative-eagle-topk": {"speculative_algorithm": "EAGLE", "device": "npu", "speculative_eagle_topk": 4},
    "--enable-two-batch-overlap": {"enable_two_batch_overlap": True},
    "--enable-single-batch-overlap": {"enable_single_batch_overlap": True},
    "--enable-mixed-chunk": {"enable_mixed_chunk": True},
    "--enable-pdmux": {"enable_pdmux": True},
    "--pp-size": {"pp_size": 2, "speculative_algorithm": "EAGLE"},
    "--enable-eplb": {"pp_size": 2, "enable_eplb": True},
    "--moe-dp-size": {"moe_dp_size": 2},
    "--dcp-size": {"dcp_size": 2},
    "--disable-attn-tp-gather": {"disable_attn_tp_gather": True},
    "--dllm-algorithm": {"dllm_algorithm": "LowConfidence"},
    "--dwdp-size": {"dwdp_size": 2},
    "--use-ray": {"use_ray": True},
    "--quantization": {"quantization": "fp8"},
    "--modelopt-quant": {"modelopt_quant": "fp8"},
    "--moe-runner-backend": {"moe_runner_backend": "triton"},
    "--enable-fused-moe-sum-all-reduce": {"enable_fused_moe_sum_all_reduce": True},
    "--deepep-config": {"deepep_config": "tuned.json"},
    "--deepep-dispatcher-output-dtype": {"deepep_dispatcher_output_dtype": "int8"},
    "--fuseep-mode": {"fuseep_mode": 1},
    "--enable-waterfill": {"enable_waterfill": True},
    "--enforce-shared-experts-fusion": {"enforce_shared_experts_fusion": True},
    "--ep-dispatch-algorithm": {"ep_dispatch_algorithm": "lp"},
    "--eplb-min-rebalancing-utilization-threshold": {"eplb_min_rebalancing_utilization_threshold": 0.9},
    "--elastic-ep-backend": {"elastic_ep_backend": "mooncake"},
    "--enable-elastic-expert-backup": {"enable_elastic_expert_backup": True},
    "--enable-paged-experts": {"enable_paged_experts": True},
    "--cpu-offload-gb": {"cpu_offload_gb": 1},
    "--offload-group-size": {"offload_group_size": 2},
    "--tokenizer-worker-num": {"tokenizer_worker_num": 2, "api_key": "key"},
    "--smg-grpc-mode": {"smg_grpc_mode": True},
    "--grpc-mode": {"grpc_mode": True},
    "--encoder-only": {"encoder_only": True},
    "--is-embedding": {"is_embedding": True},
    "--ssl-certfile": {"ssl_certfile": "certificate.pem", "disaggregation_mode": "decode"},
    "--enable-lora": {"enable_lora": True},
    "--lora-paths": {"lora_paths": ["adapter=/adapters/one"]},
    "--kt-weight-path": {"kt_weight_path": "weights"},
    "--enable-torch-compile": {"enable_torch_compile": True},
}

# What redundant experts need, and other settings that change nothing about the exchange.
FINE = [
    {"speculative_algorithm": "nextn", "speculative_num_steps": 2, "speculative_eagle_topk": 1},
    {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": "draft"},
    {"speculative_algorithm": "NEXTN", "speculative_eagle_topk": 4},
    {"quantization": "modelslim", "speculative_draft_model_quantization": "modelslim", "device": "npu"},
    {"speculative_algorithm": "NEXTN", "speculative_eagle_topk": 1, "device": "npu"},
    {"ep_num_redundant_experts": 2},
    {"enable_eplb": True, "eplb_algorithm": "deepseek"},
    {"init_expert_location": "placement.json", "ep_dispatch_algorithm": "static"},
    {"ep_dispatch_algorithm": "dynamic"},
    {"expert_distribution_recorder_mode": "stat"},
    {"moe_dense_tp_size": 1},
    {"disable_shared_experts_fusion": True},
    {"enable_dp_lm_head": True},
    {"tp_size": 2, "attn_cp_size": 2, "enable_prefill_cp": True, "cp_strategy": "zigzag"},
    {"tokenizer_worker_num": 4, "admin_api_key": "key"},
    {"flashinfer_a2a_dispatch_type": "bf16"},
    {"ssl_certfile": "certificate.pem"},
    {"moe_a2a_backend": "deepep", "deepep_mode": "low_latency"},
]


def arguments_of_a_server(**settings: object) -> Any:
    from sglang.srt.server_args import ServerArgs

    server_args = ServerArgs(model_path="dummy", **{"device": "cpu", **settings})
    attach(server_args, Options())
    return server_args


@pytest.mark.parametrize("conflict", conflicts.CONFLICTS, ids=lambda conflict: conflict.flag)
def test_a_setting_that_cannot_work_is_refused_by_name_with_cause_and_remedy(monkeypatch, conflict: conflicts.Conflict):
    conflicts.refuse_conflicts(arguments_of_a_server())
    if not conflict.flag.startswith("--"):
        monkeypatch.setenv(conflict.flag, "1")
    with pytest.raises(Unsupported) as refusal:
        conflicts.refuse_conflicts(arguments_of_a_server(**SETTINGS.get(conflict.flag, {})))
    assert str(refusal.value).startswith(f"{conflict.flag} ")
    assert conflict.cause in str(refusal.value)
    assert conflict.instead in str(refusal.value)


def test_every_refused_flag_is_one_of_the_command_line():
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert {conflict.flag for conflict in conflicts.CONFLICTS} - known == {
        "SGLANG_ENABLE_DP_SPEC_PREFILL_COORDINATION",
        "SGLANG_RUST_SERVER",
        VARIABLE,
    }


def test_a_setting_that_the_installed_sglang_does_not_have_is_not_looked_for(monkeypatch: pytest.MonkeyPatch):
    newer = conflicts.Conflict("--newer", lambda settings: settings.newer, "it is new", "leave it out", since="0.5.99")
    monkeypatch.setattr(conflicts, "CONFLICTS", (newer,))
    conflicts.refuse_conflicts(arguments_of_a_server())


@pytest.mark.parametrize("settings", FINE, ids=lambda settings: ",".join(settings))
def test_a_setting_that_changes_nothing_about_the_exchange_is_let_through(settings: dict[str, object]):
    conflicts.refuse_conflicts(arguments_of_a_server(**settings))


def test_a_backend_that_sglang_chose_over_ours_is_refused():
    arguments.refuse_other_backend(arguments_of_a_server(moe_a2a_backend=A2A_BACKEND))
    with pytest.raises(Unsupported, match="--moe-a2a-backend deepep because of another option"):
        arguments.refuse_other_backend(arguments_of_a_server(moe_a2a_backend="deepep"))


@pytest.fixture
def refused_model(monkeypatch: pytest.MonkeyPatch):
    """What `refuse_model` says about a server and the configuration of its checkpoint."""

    def message(text_config: dict[str, object], quantization: str | None, **settings: object) -> str:
        text, whole = argparse.Namespace(**text_config), argparse.Namespace(architectures=None)
        config = argparse.Namespace(hf_text_config=text, hf_config=whole, quantization=quantization)
        monkeypatch.setattr("sglang.srt.arg_groups.overrides.model_config_of", lambda _server_args: config)
        with pytest.raises(Unsupported) as refusal:
            arguments.refuse_model(arguments_of_a_server(**settings))
        return str(refusal.value)

    return message


@pytest.mark.parametrize(
    ("text_config", "quantization", "settings", "named"),
    [
        pytest.param({}, "fp8", {}, ["dummy is quantised (fp8)", "use one in bfloat16"], id="quantised"),
        pytest.param({"hidden_size": 64}, None, {}, ["not a mixture-of-experts", "without --ascend-moe"], id="dense"),
        pytest.param(
            {"num_experts": 16, "hidden_size": 64},
            None,
            {"ep_size": 3},
            ["--ep-size 3: 16 experts cannot be divided", "--tp-size", "--ep-num-redundant-experts 2"],
            id="experts",
        ),
        pytest.param(
            {"n_routed_experts": 16, "hidden_size": 64},
            None,
            {"ep_size": 4, "ep_num_redundant_experts": 2},
            ["16 experts and 2 redundant ones", "divides 18", "--ep-num-redundant-experts 4"],
            id="redundant-experts",
        ),
        pytest.param(
            {"num_local_experts": 16, "hidden_size": 72},
            None,
            {},
            ["72 elements (hidden_size)", "multiples of 16", "without --ascend-moe"],
            id="hidden",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(refused_model, text_config, quantization, settings, named):
    message = refused_model(text_config, quantization, **settings)
    assert [part for part in named if part not in message] == []
