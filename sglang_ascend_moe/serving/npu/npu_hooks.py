"""What is changed on NPUs besides graphs; nothing of it has run on one. One row a hook, with its reason."""

from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, Where
from sglang_ascend_moe.serving.npu import experts, router_scores

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
        f"{SRT}.layers.moe.topk.TopK.__init__",
        HookKind.AFTER,
        router_scores.score_by_sigmoid,
        "SGLang scores experts of GLM4-MoE, which names no function, by softmax on NPUs and by sigmoid elsewhere",
        Where.NPU,
        mends=SglangFault(),
    ),
)
