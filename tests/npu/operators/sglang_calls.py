"""What SGLang 0.5.23 calls of torch_npu and sgl-kernel-npu in the files that serve these models, and on which path.

The models are Qwen3-MoE, DeepSeek-V3, GLM4-MoE and MiniMax-M2, in bfloat16 and with W8A8 experts, and DeepSeek-V3.2 and
GLM-5 in bfloat16, with the attention backend `ascend`. FIA is `ASCEND_USE_FIA=1`. `test_sglang_calls` finds every call
again.
"""

from typing import NamedTuple

ATTENTION = "hardware_backend/npu/attention/ascend_backend.py"
POOL = "hardware_backend/npu/memory_pool_npu.py"
LATENT = "hardware_backend/npu/modules/deepseek_v2_attention_mla_npu.py"
MOE = "hardware_backend/npu/moe"
INDEXER = "layers/attention/dsa/dsa_npu_indexer.py"
LINEAR = "hardware_backend/npu/quantization/linear_method_npu.py"
METHODS = "hardware_backend/npu/quantization/moe_methods.py"
ROTATION = "layers/rotary_embedding"
DRAFTS = "../kernels/ops/speculative"
FUSED, FUSED_V2 = "npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"
WORKSPACE = "_npu_fused_infer_attention_score_get_max_workspace"


class Call(NamedTuple):
    """A line of sglang/srt that calls an operator."""

    file: str
    line: int
    operator: str
    path: str


SERVED = (
    Call(ATTENTION, 1376, "npu_sparse_flash_attention", "sparse attention of a prefill that ranks share"),
    Call(ATTENTION, 1587, "npu_sparse_flash_attention", "sparse attention"),
    Call(ATTENTION, 1888, FUSED, "prefill and chunks, FIA, heads of 128, 192 or 256"),
    Call(ATTENTION, 1940, FUSED_V2, "prefill and chunks, FIA, other heads: sequence by sequence"),
    Call(ATTENTION, 2033, "_npu_flash_attention_qlens", "prefill and chunks"),
    Call(ATTENTION, 2157, FUSED, "latent prefill after a prefix, heads as wide as values"),
    Call(ATTENTION, 2192, FUSED_V2, "latent prefill after a prefix: new keys"),
    Call(ATTENTION, 2234, FUSED_V2, "latent prefill after a prefix: keys of the prefix"),
    Call(ATTENTION, 2258, "npu_attention_update", "latent prefill after a prefix: both put together"),
    Call(ATTENTION, 2293, FUSED, "latent prefill, heads as wide as values"),
    Call(ATTENTION, 2354, FUSED, "latent prefill"),
    Call(ATTENTION, 2582, FUSED, "drafts that are verified, and read again"),
    Call(ATTENTION, 2751, WORKSPACE, "latent, drafts that are verified, and read again"),
    Call(ATTENTION, 2773, f"{FUSED}.out", "latent, drafts that are verified, and read again"),
    Call(ATTENTION, 2954, WORKSPACE, "decode in graphs"),
    Call(ATTENTION, 2974, f"{FUSED}.out", "decode in graphs"),
    Call(ATTENTION, 3036, WORKSPACE, "latent decode in graphs"),
    Call(ATTENTION, 3056, f"{FUSED}.out", "latent decode in graphs"),
    Call(ATTENTION, 3245, FUSED, "decode, FIA"),
    Call(ATTENTION, 3310, "_npu_paged_attention", "decode"),
    Call(ATTENTION, 3431, FUSED, "latent decode, FIA, at least eight heads to a key"),
    Call(ATTENTION, 3469, "_npu_paged_attention_mla", "latent decode"),
    Call(ATTENTION, 3523, FUSED, "chunks mixed with decode"),
    Call(POOL, 318, "npu_scatter_pa_kv_cache", "new keys, if SGLANG_NPU_USE_SCATTER_PA_KV_CACHE"),
    Call(POOL, 337, "npu_scatter_nd_update_", "new keys, FIA"),
    Call(POOL, 342, "npu_scatter_nd_update_", "new values, FIA"),
    Call(POOL, 349, "_npu_reshape_and_cache", "new keys and values"),
    Call(POOL, 1039, "npu_scatter_nd_update_", "new latent keys"),
    Call(POOL, 1044, "npu_scatter_nd_update_", "their positions"),
    Call(POOL, 1096, "npu_scatter_nd_update_", "new keys of an indexer"),
    Call(INDEXER, 111, "npu_rotary_mul", "positions of an indexer's queries, on a stream of its own"),
    Call(INDEXER, 131, "npu_rotary_mul", "positions of an indexer's queries"),
    Call(INDEXER, 159, "npu_rotary_mul", "positions of an indexer's keys"),
    Call(INDEXER, 338, "npu_lightning_indexer", "the keys that sparse attention sees"),
    Call(INDEXER, 369, "npu_lightning_indexer", "the same of a prefill that ranks share"),
    Call("hardware_backend/npu/allocator_npu.py", 67, "alloc_extend_kernel", "slots of a prefill"),
    Call("hardware_backend/npu/utils.py", 323, "npu_format_cast", "weights, when they are loaded"),
    Call("hardware_backend/npu/cmo.py", 38, "npu_prefetch", "weights ahead of their use"),
    Call("hardware_backend/npu/cmo.py", 44, "npu_prefetch", "weights ahead of their use"),
    Call(LATENT, 97, "npu_interleave_rope", "latent prefill with YaRN"),
    Call(LATENT, 105, "npu_kv_rmsnorm_rope_cache", "latent prefill with YaRN"),
    Call(LATENT, 225, "fused_split_qk_norm", "latent decode"),
    Call(LATENT, 335, "batch_matmul_transpose", "latent decode, 65,536 or more tokens"),
    Call(LATENT, 338, "npu_transpose_batchmatmul", "latent decode"),
    Call(LATENT, 441, "fused_split_qk_norm", "sparse attention of GLM-5"),
    Call(LATENT, 468, "npu_transpose_batchmatmul", "sparse attention: queries"),
    Call(LATENT, 581, "npu_transpose_batchmatmul", "sparse attention: values of a prefill"),
    Call(LATENT, 595, "batch_matmul_transpose", "sparse attention: values"),
    Call(f"{MOE}/topk.py", 39, "custom.npu_moe_gating_top_k", "routing of DeepSeek-V4"),
    Call(f"{MOE}/topk.py", 56, "npu_moe_gating_top_k_softmax", "routing of Qwen3-MoE"),
    Call(f"{MOE}/topk.py", 64, "l1_norm", "its weights"),
    Call(f"{MOE}/topk.py", 77, "npu_moe_gating_top_k", "routing of the other models"),
    Call(f"{MOE}/init_routing.py", 102, "npu_moe_init_routing_v2", "rows to experts of the own rank"),
    Call(f"{MOE}/finalize_routing.py", 45, "npu_moe_finalize_routing", "their sums"),
    Call(f"{MOE}/activation.py", 28, "npu_swiglu", "experts in bfloat16"),
    Call(f"{MOE}/activation.py", 33, "npu_dequant_swiglu_quant", "experts in W8A8"),
    Call(f"{MOE}/activation.py", 220, "npu_swiglu", "experts in bfloat16 with a limit that is not set"),
    Call(f"{MOE}/matmul.py", 41, "npu_grouped_matmul", "experts"),
    Call(LINEAR, 149, "npu_dynamic_quant", "layers in W8A8"),
    Call(LINEAR, 150, "npu_quant_matmul", "layers in W8A8"),
    Call("layers/activation.py", 167, "npu_swiglu", "dense layers and shared experts"),
    Call("layers/layernorm.py", 651, "npu_add_rms_norm", "norms with a residual"),
    Call("layers/layernorm.py", 655, "npu_rms_norm", "norms"),
    Call("layers/sampler.py", 878, "npu_top_k_top_p", "sampling"),
    Call(f"{ROTATION}/base.py", 386, "fused_rope_qk_mqa", "positions of DeepSeek-V3 without YaRN"),
    Call(f"{ROTATION}/base.py", 409, "npu_mrope", "positions of MiniMax-M2 without norms of heads"),
    Call(f"{ROTATION}/rope_variant.py", 521, "npu_interleave_rope", "positions of DeepSeek-V3 with YaRN"),
    Call(f"{ROTATION}/rope_variant.py", 526, "npu_interleave_rope", "positions of DeepSeek-V3 with YaRN"),
    Call(f"{ROTATION}/utils.py", 134, "npu_rotary_mul", "positions with tables of their own"),
    Call(f"{ROTATION}/utils.py", 135, "npu_rotary_mul", "positions with tables of their own"),
    Call(f"{DRAFTS}/cache_locs.py", 724, "cache_loc_update", "slots of drafts that are verified"),
    Call(f"{DRAFTS}/spec_tree.py", 382, "build_tree_kernel_efficient", "drafts as trees"),
    Call(f"{DRAFTS}/spec_tree.py", 526, "verify_tree_greedy", "how far drafts are right"),
    Call("models/qwen3_moe.py", 619, "split_qkv_rmsnorm_rope", "heads of Qwen3-MoE"),
    Call("models/glm4_moe.py", 342, "split_qkv_rmsnorm_rope", "heads of GLM4-MoE"),
    Call("models/minimax_m2.py", 774, "split_qkv_tp_rmsnorm_rope", "heads of MiniMax-M2"),
)
# Functions of the same files that call operators on other paths, with the reason. A name stands for all inside it.
NOT_SERVED = {
    ATTENTION: {
        "AscendAttnBackend.do_cp_attn_fia": "context parallelism",
        "AscendAttnBackend.forward_dllm": "diffusion models",
    },
    POOL: {
        "NPUMHATokenToKVPool.set_kv_buffer_prefix_valid": "drafts of DSpark",
        "NPUMHATokenToKOnlyPool": "sparse attention of MiniMax-M3",
        "NPUMLATokenToKVPool.set_index_k_scale_buffer": "keys of 8 bits",
        "NPUMLATokenToKVPool._pack_dsa_fp8_kv_cache": "keys of 8 bits",
        "NPUMLATokenToKVPool._set_fia_nz_kv_buffer": "SGLANG_USE_FIA_NZ",
    },
    LATENT: {"_apply_interleaved_rope_with_half_output": "fused preparation of latent attention"},
    INDEXER: {"_quantize_npu_indexer_activation": "keys of 8 bits"},
    f"{MOE}/quant.py": {"HiddenStatesStaticQuant": "static quantisation"},
    f"{MOE}/init_routing.py": {
        "NPUMoEInitRouting_v1": "nobody makes one",
        "NPUMoEInitRouting_Quant": "nobody makes one",
    },
    f"{MOE}/finalize_routing.py": {"NPUMoETokenUnpermute": "nobody makes one"},
    f"{MOE}/activation.py": {
        "NPUSwigluQuantWithScales": "nobody makes one",
        "NPUSwigluMxfp8Quant": "numbers of MXFP8",
    },
    f"{MOE}/matmul.py": {"GroupedMatmulSwigluQuant": "numbers of MXFP8"},
    METHODS: {
        "w4a8_mxfp_gmm": "numbers of MXFP4",
        "fused_moe_npu": "models that are not these",
        "NPUWNA16Int4MoEMethod": "numbers of 4 bits",
        "NPUMXFP8MoEMethod": "numbers of MXFP8",
    },
    LINEAR: {
        "NPUW8A8Int8LinearMethod": "static quantisation",
        "NPUMXFP8LinearMethod": "numbers of MXFP8",
        "npu_w8a8_mxfp8_linear": "numbers of MXFP8",
        "NPU_W4A4DynamicLinearMethod": "numbers of 4 bits",
        "NPUMXFP4W4A8LinearMethod": "numbers of MXFP4",
        "NPUMXFP4W4A8OfflineLinearMethod": "numbers of MXFP4",
        "NPUSingleLevelMXFP4LinearMethod": "numbers of MXFP4",
        "NPUDualLevelMXFP4LinearMethod": "numbers of MXFP4",
    },
    "layers/activation.py": {
        "SituAndMul": "another activation",
        "GeluAndMul": "another activation",
        "QuickGELU": "another activation",
    },
    "layers/layernorm.py": {"GemmaRMSNorm": "norms of Gemma", "Gemma3RMSNorm": "norms of Gemma"},
    f"{ROTATION}/mrope.py": {"MRotaryEmbedding": "positions of pictures"},
    "models/deepseek_v2.py": {"DeepseekV2MLP": "a limit that DeepSeek-V3 does not set"},
    "distributed/parallel_state.py": {"GroupCoordinator.quant_all_reduce": "sums of 8 bits"},
    "layers/dcp/comm.py": {"cp_lse_ag_out_rs_mla_npu": "context parallelism"},
    "mem_cache/allocator/swa.py": {"SWATokenToKVPoolAllocator": "sliding windows"},
}
# Single calls inside functions that are served.
NOT_SERVED_LINES = {
    (ATTENTION, 1747): "sinks and sliding windows",
    (ATTENTION, 1815): "sinks and sliding windows",
    (ATTENTION, 1848): "sinks and sliding windows",
    (ATTENTION, 2559): "sinks and sliding windows",
    (ATTENTION, 2725): "drafts of DSpark",
    (ATTENTION, 2884): "sinks and sliding windows",
    (ATTENTION, 2915): "sinks and sliding windows",
    (ATTENTION, 3192): "sinks and sliding windows",
    (ATTENTION, 3221): "sinks and sliding windows",
    (ATTENTION, 1560): "keys of 8 bits",
    (POOL, 1013): "keys of 8 bits",
    (INDEXER, 318): "keys of 8 bits",
    ("hardware_backend/npu/utils.py", 304): "numbers of MXFP4",
    (f"{DRAFTS}/spec_tree.py", 497): "another device",
}
