"""MoE blocks of other models in the layers of Qwen3-MoE: see `patches`."""


def use_blocks_of_mimo_v2() -> None:
    """Layers of Qwen3-MoE have the MoE blocks of MiMo-V2: groups of experts, a correction bias."""
    from types import SimpleNamespace

    from sglang.srt.models.mimo_v2 import MiMoV2MoE

    def block(config, layer_id):
        theirs = SimpleNamespace(
            n_routed_experts=config.num_experts,
            num_experts_per_tok=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            moe_intermediate_size=config.moe_intermediate_size,
            hidden_act="silu",
            topk_method="noaux_tc",
            norm_topk_prob=True,
            n_group=4,
            topk_group=2,
            scoring_func="sigmoid",
        )
        made = MiMoV2MoE(theirs, layer_id)
        _fill(made.gate.e_score_correction_bias, layer_id)
        return made

    _replace_blocks_of_qwen3(block)


def use_blocks_of_step3p5() -> None:
    """Layers of Qwen3-MoE have the MoE blocks of Step 3.5: a bias of the router, scaled experts, a shared expert, which
    their decoder layers give to them."""
    from types import SimpleNamespace

    from sglang.srt.layers.moe.utils import get_moe_a2a_backend
    from sglang.srt.models.step3p5 import Step3p5MLP, Step3p5MoEMLP

    forward = Step3p5MoEMLP.forward
    Step3p5MoEMLP.forward = lambda block, rows, batch=None: forward(block, rows, batch, block.share_expert(rows))

    def block(config, layer_id):
        theirs = SimpleNamespace(
            moe_num_experts=config.num_experts,
            moe_top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            moe_intermediate_size=config.moe_intermediate_size,
            moe_router_scaling_factor=2.5,
            use_moe_router_bias=True,
            need_fp32_gate=layer_id % 2 == 0,
            swiglu_limits=[0.0] * config.num_hidden_layers,
        )
        made = Step3p5MoEMLP(theirs, layer_id)
        _fill(made.router_bias, layer_id)
        group = "replicated" if get_moe_a2a_backend().is_ascend_fuseep() else "tp"
        made.share_expert = Step3p5MLP(
            config.hidden_size, config.moe_intermediate_size, reduce_results=False, parallel_group=group
        )
        for weight in made.share_expert.parameters():
            _fill(weight, layer_id)
        return made

    _replace_blocks_of_qwen3(block)


def use_blocks_of_gpt_oss() -> None:
    """Layers of Qwen3-MoE have the MoE blocks of gpt-oss: a limited SwiGLU with alpha, biases of experts and router."""
    from types import SimpleNamespace

    import torch
    from sglang.srt.layers.moe import fused_moe_native
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
    from sglang.srt.models.gpt_oss import GptOssSparseMoeBlock

    # What a compiler makes of it takes longer to make than this test.
    fused_moe_native.swiglu_gpt_oss_sigmoid_alpha = fused_moe.swiglu_gpt_oss_sigmoid_alpha._torchdynamo_orig_callable

    def block(config, layer_id):
        theirs = SimpleNamespace(
            num_local_experts=config.num_experts,
            num_experts_per_tok=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            hidden_act="silu",
            swiglu_limit=0.1,
            dtype=torch.get_default_dtype(),
        )
        made = GptOssSparseMoeBlock(layer_id, theirs)
        for parameter in made.router.parameters():
            _fill(parameter, layer_id)
        _fill_experts(made.experts, layer_id)
        return made

    _replace_blocks_of_qwen3(block, are_filled=True)


def use_blocks_of_kimi_k3() -> None:
    """Layers of Qwen3-MoE have the MoE blocks of Kimi-K3: experts in a narrower space, SiTU, a shared expert."""
    from types import SimpleNamespace

    from sglang.srt.models.kimi_k3 import KimiK3MoE

    forward = KimiK3MoE.forward
    KimiK3MoE.forward = lambda block, rows, _batch=None: forward(block, rows)

    def block(config, layer_id):
        theirs = SimpleNamespace(
            hidden_size=config.hidden_size,
            moe_intermediate_size=config.moe_intermediate_size,
            num_experts=config.num_experts,
            n_routed_experts=config.num_experts,
            num_experts_per_token=config.num_experts_per_tok,
            num_shared_experts=1,
            routed_expert_hidden_size=config.hidden_size // 2,
            latent_moe_use_norm=True,
            routed_scaling_factor=2.5,
            moe_renormalize=True,
            moe_router_activation_func="sigmoid",
            num_expert_group=1,
            topk_group=1,
            topk_method="noaux_tc",
            hidden_act="situ",
            activation_situ_beta=4.0,
            activation_situ_linear_beta=25.0,
            rms_norm_eps=config.rms_norm_eps,
        )
        made = KimiK3MoE(theirs, layer_idx=layer_id)
        for name, parameter in made.named_parameters():
            if not name.startswith("experts") and "norm" not in name:
                _fill(parameter, layer_id)
        _fill_experts(made.experts, layer_id)
        return made

    _replace_blocks_of_qwen3(block, are_filled=True)


def use_blocks_of_deepseek_v4() -> None:
    """Layers of Qwen3-MoE have the MoE blocks of DeepSeek-V4: a SwiGLU whose inputs are limited, another score."""
    from types import SimpleNamespace

    import torch.nn.functional as F
    from sglang.srt.layers.moe import fused_moe_native
    from sglang.srt.models import deepseek_v2

    limit = 0.1

    def limited(rows):
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)

    # On a CPU SGLang leaves the limit out, and has no kernel for shared experts.
    fused_moe_native.SiluAndMul = lambda: limited
    deepseek_v2.silu_and_mul_clamp = lambda rows, out, _limit: out.copy_(limited(rows))

    def block(config, layer_id):
        theirs = SimpleNamespace(
            n_routed_experts=config.num_experts,
            n_shared_experts=1,
            num_experts_per_tok=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            moe_intermediate_size=config.moe_intermediate_size,
            hidden_act="silu",
            topk_method="noaux_tc",
            norm_topk_prob=True,
            n_group=1,
            topk_group=1,
            scoring_func="sqrtsoftplus",
            routed_scaling_factor=1.5,
            swiglu_limit=limit,
        )
        made = deepseek_v2.DeepseekV2MoE(theirs, layer_id, is_deepseek_v4=True, reduce_results=False)
        for parameter in (*made.gate.parameters(), *made.shared_experts.parameters()):
            _fill(parameter, layer_id)
        _fill_experts(made.experts, layer_id)
        return made

    _replace_blocks_of_qwen3(block, are_filled=True)


def use_blocks_of_hunyuan() -> None:
    """Layers of Qwen3-MoE have the MoE blocks of Hunyuan, which get the rows of all ranks, as in its own layers."""
    from types import SimpleNamespace

    import torch
    import torch.nn.functional as F
    from sglang.srt.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
    from sglang.srt.layers.moe.utils import get_moe_a2a_backend
    from sglang.srt.models.hunyuan import HunYuanSparseMoeBlock
    from sglang.srt.runtime_context import get_parallel

    class WithRowsOfAll(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, rows, _batch=None):
            if not get_moe_a2a_backend().is_ascend_fuseep():
                return self.block(rows)
            parallel = get_parallel()
            counts = rows.new_zeros(parallel.tp_size)
            counts[parallel.tp_rank] = len(rows)
            counts = [int(count) for count in tensor_model_parallel_all_reduce(counts)]
            gathered = tensor_model_parallel_all_gather(F.pad(rows, (0, 0, 0, max(counts) - len(rows))), dim=0)
            parts = [part[:count] for part, count in zip(gathered.chunk(parallel.tp_size), counts, strict=True)]
            return self.block(torch.cat(parts)).split(counts)[parallel.tp_rank]

    def block(config, layer_id):
        theirs = SimpleNamespace(
            num_experts=config.num_experts,
            moe_topk=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            moe_intermediate_size=None,
            hidden_act="silu",
            use_mixed_mlp_moe=1,
            num_shared_expert=1,
        )
        made = HunYuanSparseMoeBlock(theirs, layer_id=layer_id)
        _fill(made.gate.weight, layer_id)
        _fill_experts(made.experts, layer_id)
        _fill_shards(made.shared_mlp, layer_id)
        return WithRowsOfAll(made)

    _replace_blocks_of_qwen3(block, are_filled=True)


def _replace_blocks_of_qwen3(block, *, are_filled: bool = False) -> None:
    """`block` makes one of a config and the number of a layer; experts and router have the names of Qwen3-MoE's, and
    get their weights from the checkpoint unless all of the block is filled."""
    from sglang.srt.models.qwen3_moe import Qwen3MoeDecoderLayer, Qwen3MoeForCausalLM

    original, load_weights = Qwen3MoeDecoderLayer.__init__, Qwen3MoeForCausalLM.load_weights

    def replaced(layer, config, layer_id, *arguments, **keywords):
        original(layer, config, layer_id, *arguments, **keywords)
        layer.mlp = block(config, layer_id)

    def load_others(model, weights):
        return load_weights(model, ((name, weight) for name, weight in weights if ".mlp." not in name))

    Qwen3MoeDecoderLayer.__init__ = replaced
    if are_filled:
        Qwen3MoeForCausalLM.load_weights = load_others


def _fill(parameter, seed: int) -> None:
    """Numbers that are the same on every rank, for what the checkpoint has not."""
    import torch

    parameter.data.copy_(_numbers(parameter.shape, torch.Generator().manual_seed(seed)) * 0.1)


def _numbers(shape, generator):
    """The same on each device and for each dtype of a model."""
    import torch

    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


def _fill_shards(mlp, seed: int) -> None:
    """Gate, up and down of a dense block that is split over the ranks."""
    import torch
    from sglang.srt.runtime_context import get_parallel

    ranks, rank = get_parallel().tp_size, get_parallel().tp_rank
    gate_up, down = mlp.gate_up_proj.weight.data, mlp.down_proj.weight.data
    hidden, width = gate_up.shape[1], down.shape[1] * ranks
    generator = torch.Generator().manual_seed(seed)
    gate, up, whole = (_numbers(shape, generator) * 0.1 for shape in [(width, hidden)] * 2 + [(hidden, width)])
    gate_up.copy_(torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]]))
    down.copy_(whole.chunk(ranks, dim=1)[rank])


def _fill_experts(experts, seed: int) -> None:
    """Weights and biases that each expert has on whatever rank it is."""
    import torch

    first = experts.moe_ep_rank * experts.num_local_experts
    for name in ("w13_weight", "w2_weight", "w13_weight_bias", "w2_weight_bias"):
        if (parameter := getattr(experts, name, None)) is not None:
            for expert, own in enumerate(parameter.data):
                generator = torch.Generator().manual_seed(1000 * seed + first + expert)
                own.copy_(_numbers(own.shape, generator) * own.shape[-1] ** -0.5)
