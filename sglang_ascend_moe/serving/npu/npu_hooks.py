"""What is changed on NPUs besides graphs; nothing of it has run on one. One row a hook, with its reason."""

from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, Where
from sglang_ascend_moe.serving.npu import experts, four_bit_settings, indexed_batches, routers

SRT = "sglang.srt"

HOOKS: tuple[Hook, ...] = (
    Hook(
        f"{SRT}.hardware_backend.npu.quantization.moe_methods.NPUW8A8Int8MoEMethod.maybe_process_fuseep_weights",
        HookKind.AROUND,
        experts.keep_weights,
        "the backend that --ascend-moe chooses lays W8A8 weights out for SGLang's own fused kernel",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.layers.quantization.compressed_tensors.schemes.compressed_tensors_w4a8_int8_moe"
        ".NPUCompressedTensorsW4A8Int8DynamicMoE.__init__",
        HookKind.AROUND,
        four_bit_settings.read_as_written,
        "SGLang cannot build W4A8 experts of compressed-tensors: it asks the wrong object for what config.json says",
        Where.NPU,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.layers.moe.topk.TopK.__init__",
        HookKind.AFTER,
        routers.score_by_sigmoid,
        "SGLang scores experts of GLM4-MoE, which names no function, by softmax on NPUs and by sigmoid elsewhere",
        Where.NPU,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.moe.topk.fused_topk_npu",
        HookKind.AROUND,
        routers.choose_groups_by_their_best,
        "SGLang ranks groups of DeepSeek-V2's experts by the sum of the two best on NPUs and by the best elsewhere",
        Where.NPU,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.layers.attention.dsa.dsa_npu_indexer.DSANPUIndexerMixin.forward_npu",
        HookKind.AROUND,
        indexed_batches.index,
        "SGLang's indexers in a graph turn keys by positions of its warm-up, which are gone when it is replayed; where"
        " a rank has padding alone, they have an empty block table",
        Where.NPU,
        mends=SglangFault(),
    ),
)
