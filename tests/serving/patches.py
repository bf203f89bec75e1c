"""Deliberate damage, applied inside an engine's process before SGLang loads its plugins; its ranks inherit it."""


def zero_moe_output() -> None:
    """Every sparse layer returns zeros in place of what its experts computed."""
    import torch
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    forward = FusedMoE.forward

    def zeros(*arguments, **keywords):
        return torch.zeros_like(forward(*arguments, **keywords))

    FusedMoE.forward = zeros


def corrupt_one_row() -> None:
    """In the first layer, the first row that rank 0 receives has its sign changed before the experts run."""
    from sglang.srt.runtime_context import get_parallel

    from sglang_ascend_moe.serving.worker import layer

    compute_experts = layer.compute_experts

    def corrupted(serving, moe_layer, rows):
        if moe_layer.layer_id == 0 and get_parallel().moe_ep_rank == 0 and rows.counts.sum() > 0:
            rows.rows[0].neg_()
        compute_experts(serving, moe_layer, rows)

    layer.compute_experts = corrupted


def route_to_the_first_experts() -> None:
    """Every routed token goes to experts 0, 1, ...: rank 0 gets all rows."""
    import torch

    from sglang_ascend_moe.exchange.exchange import Exchange

    run = Exchange.run

    def routed(exchange, x, topk_ids, *arguments, **keywords):
        first = torch.arange(topk_ids.shape[1], dtype=topk_ids.dtype).expand_as(topk_ids)
        return run(exchange, x, torch.where(topk_ids < 0, topk_ids, first), *arguments, **keywords)

    Exchange.run = routed


def move_experts_differently() -> None:
    """When SGLang moves experts, rank 1 wants the first two places of the last layer the other way round."""
    from sglang.srt.eplb.eplb_manager import EPLBManager
    from sglang.srt.runtime_context import get_parallel

    compute = EPLBManager._compute_expert_location_metadata

    def differently(*arguments, **keywords):
        metadata = compute(*arguments, **keywords)
        if get_parallel().tp_rank == 1:
            last = metadata.physical_to_logical_map_cpu[-1]
            last[:2] = last[:2].flip(0)
        return metadata

    EPLBManager._compute_expert_location_metadata = differently


def leave_no_memory() -> None:
    """Every worker finds 1000 bytes of memory available."""
    import msgspec

    from sglang_ascend_moe.serving.worker import layer

    read_limits = layer.read_limits
    layer.read_limits = lambda: msgspec.structs.replace(read_limits(), memory_available=1000)


def remove_moe_entry_point() -> None:
    """The function that our MoE layer hooks is not there, as in a version of SGLang that renamed it."""
    from sglang.srt.hardware_backend.npu.moe import fuseep

    del fuseep.forward_fuseep


def combine_as_across_ranks() -> None:
    """Sparse layers add shared and routed experts in the form that SGLang's models use with an exchange of rows.

    On one rank they use another, which rounds at other places.
    """
    from sglang.srt.models import deepseek_v2, glm4_moe, qwen2_moe

    for block, form in (
        (deepseek_v2.DeepseekV2MoE, "forward_deepep"),
        (glm4_moe.Glm4MoeSparseMoeBlock, "forward_deepep"),
        (qwen2_moe.Qwen2MoeSparseMoeBlock, "_forward_deepep"),
    ):
        block.forward = _only_rows(getattr(block, form))


def _only_rows(form):
    return lambda block, hidden_states, forward_batch=None, *_, **__: form(block, hidden_states, forward_batch)


def keep_router_weights() -> None:
    """One NPU sums the rows of experts by weights in float32, as we do across ranks; SGLang rounds them there."""
    from sglang.srt.layers.moe.token_dispatcher.ascend_tp import AscendTPDispatcher

    dispatch = AscendTPDispatcher.dispatch

    def kept(dispatcher, hidden_states, topk_output):
        dispatched = dispatch(dispatcher, hidden_states, topk_output)._replace(topk_weights=topk_output.topk_weights)
        dispatcher._dispatch_output = dispatched
        return dispatched

    AscendTPDispatcher.dispatch = kept


def name_scoring_function() -> None:
    """The routers of GLM4-MoE name the function that they score experts with."""
    import functools

    from sglang.srt.models import glm4_moe

    glm4_moe.TopK = functools.partial(glm4_moe.TopK, scoring_func="sigmoid")


def draft_once_more() -> None:
    """Rank 1 runs its draft model once more than the others, from its fifth draft on."""
    from sglang.srt.runtime_context import get_parallel
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker

    draft_forward = EagleDraftWorker.draft_forward
    drafts = 0

    def again(worker, forward_batch):
        nonlocal drafts
        drafts += 1
        if get_parallel().tp_rank == 1 and drafts > 4:
            draft_forward(worker, forward_batch)
        return draft_forward(worker, forward_batch)

    EagleDraftWorker.draft_forward = again


def forget_moe_blocks() -> None:
    """No MoE block of SGLang is known to our layer, as if the model's were a new one."""
    from sglang_ascend_moe.serving.worker import moe_blocks

    moe_blocks.KNOWN_BLOCKS = {}


def capture_with_the_npu_backend() -> None:
    """Decode graphs are those of SGLang's own NPU graph backend over the stand-in for `torch.npu`, in place of ours."""
    import logging
    from types import SimpleNamespace

    import torch
    from sglang.srt.hardware_backend.npu.graph_runner.npu_cudagraph_backend import NPUCudaGraphBackend

    from sglang_ascend_moe.serving.host.sglang_platform import HostPlatform
    from tests.graph_capture import npu_stand_in

    npu_stand_in.install()
    replay = NPUCudaGraphBackend.replay

    def counted(backend, *arguments, **keywords):
        backend.replays = getattr(backend, "replays", 0) + 1
        logging.getLogger(__name__).warning("replay %d of the NPU backend", backend.replays)
        return replay(backend, *arguments, **keywords)

    def make(runner, *, enable_memory_saver=False):
        seen = SimpleNamespace(device_module=torch.npu, enable_torch_compile=runner.enable_torch_compile)
        return NPUCudaGraphBackend(seen, enable_memory_saver=enable_memory_saver)

    NPUCudaGraphBackend.replay = counted
    NPUCudaGraphBackend.bytes = 0
    HostPlatform.get_full_graph_backend_cls = lambda _platform: make


def take_replayed_steps_again() -> None:
    """After a replay every rank takes the same padded step again, eagerly, and compares bits."""
    import logging

    import torch

    from sglang_ascend_moe.graph_capture.runners.host_runner import HostGraphBackend, HostGraphRunner

    initialise, capture_one, replay = HostGraphRunner.__init__, HostGraphBackend.capture_one, HostGraphBackend.replay
    steps = {}

    def initialised(runner, model_runner):
        HostGraphBackend.attention = model_runner.attn_backend
        initialise(runner, model_runner)

    def captured(backend, shape_key, step, *arguments, **keywords):
        # SGLang prepares the length of the keys before each capture.
        steps[shape_key] = backend.attention._length, step
        capture_one(backend, shape_key, step, *arguments, **keywords)

    def replayed(backend, shape_key, *arguments, **keywords):
        output = replay(backend, shape_key, *arguments, **keywords)
        logits = output.next_token_logits.clone()
        backend.attention._length, step = steps[shape_key]
        equal = torch.equal(logits, step().next_token_logits)
        logging.getLogger(__name__).warning("a replay gave %s bits", "equal" if equal else "OTHER")
        return output

    HostGraphRunner.__init__, HostGraphBackend.capture_one, HostGraphBackend.replay = initialised, captured, replayed


def activate_as_an_npu() -> None:
    """Experts of the host round what they activate once, as the operator of an NPU does."""
    from sglang_ascend_moe.serving.worker import host_experts
    from tests.npu.operators.experts import swiglu

    host_experts.activation_of = lambda _layer: lambda rows: swiglu(rows, -1)


def compute_with_the_ascend_runner() -> None:
    """Experts are computed as on an NPU, by SGLang's own Ascend runner over stand-ins for its operators."""
    import functools
    import logging
    from types import SimpleNamespace

    from sglang_ascend_moe.serving.npu import experts
    from sglang_ascend_moe.serving.worker import layer
    from tests.npu.operators.modules import install_operators

    open_exchanges, compute = layer.open_exchanges, experts.compute

    @functools.wraps(open_exchanges)
    def opened(result, model_runner, *arguments, **keywords):
        open_exchanges(result, model_runner, *arguments, **keywords)
        from sglang.srt.hardware_backend.npu.quantization.moe_methods import NPUUnquantMoEMethod
        from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
        from sglang.srt.layers.moe.moe_runner.ascend import AscendRunnerCore

        install_operators()
        for module in model_runner.model.modules():
            if isinstance(module, FusedMoE):
                # As SGLang makes them where it sees an NPU.
                module.w13_kernel, module.w2_kernel = NPUUnquantMoEMethod(), NPUUnquantMoEMethod()
                module.moe_runner_config.layer = module
                module.runner = SimpleNamespace(runner_core=AscendRunnerCore(module.moe_runner_config))
                experts.prepare(module, layer._serving.options)
        layer._serving = layer._serving._replace(on_npu=True)

    def counted(moe_layer, rows):
        compute(moe_layer, rows)
        counted.calls += 1
        if counted.calls == 100:
            logging.getLogger(__name__).warning("the Ascend runner has computed 100 times")

    counted.calls = 0
    layer.open_exchanges, experts.compute = opened, counted


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

    numbers = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    parameter.data.copy_(numbers * 0.1)


def _fill_shards(mlp, seed: int) -> None:
    """Gate, up and down of a dense block that is split over the ranks."""
    import torch
    from sglang.srt.runtime_context import get_parallel

    ranks, rank = get_parallel().tp_size, get_parallel().tp_rank
    gate_up, down = mlp.gate_up_proj.weight.data, mlp.down_proj.weight.data
    hidden, width = gate_up.shape[1], down.shape[1] * ranks
    generator = torch.Generator().manual_seed(seed)
    gate, up, whole = (
        torch.randn(shape, generator=generator) * 0.1 for shape in [(width, hidden)] * 2 + [(hidden, width)]
    )
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
                own.copy_(torch.randn(own.shape, generator=generator) * own.shape[-1] ** -0.5)


def count_decode_steps() -> None:
    """On emulated NPUs, what the host asks of the device from one decode step to the next goes into the log."""
    import json

    from sglang.srt.managers.scheduler import Scheduler

    from tests.npu.device.library import native
    from tests.serving.decode_steps import MARK

    run_batch = Scheduler.run_batch
    before = {}

    def counted(scheduler, batch, *arguments, **keywords):
        now = {name: calls for name, (calls, _bytes) in native().counters().items()}
        if before and batch.forward_mode.is_decode():
            calls = {name: count - before.get(name, 0) for name, count in now.items()}
            # In one piece, for another rank writes too.
            print(MARK + json.dumps({name: count for name, count in calls.items() if count}) + "\n", end="", flush=True)
        before.clear()
        before.update(now if batch.forward_mode.is_decode() else {})
        return run_batch(scheduler, batch, *arguments, **keywords)

    Scheduler.run_batch = counted


def tell_batches() -> None:
    """Each batch that a rank runs goes into the log."""
    from sglang.srt.managers.scheduler import Scheduler

    run_batch = Scheduler.run_batch

    def told(scheduler, batch, *arguments, **keywords):
        _tell(batch.forward_mode.name.lower(), batch.batch_size(), batch.extend_num_tokens or 0)
        return run_batch(scheduler, batch, *arguments, **keywords)

    Scheduler.run_batch = told


def tell_steps() -> None:
    """On NPUs, each batch that a rank runs and each graph that it replays goes into the log."""
    import sglang.srt.model_executor.model_runner  # noqa: F401 - the next cannot be imported first
    from sglang.srt.hardware_backend.npu.graph_runner.npu_graph_runner import NPUGraphRunner

    tell_batches()
    execute = NPUGraphRunner.execute

    def replayed(runner, *arguments, **keywords):
        output = execute(runner, *arguments, **keywords)
        _tell("replay", runner.raw_bs, runner.bs)
        return output

    NPUGraphRunner.execute = replayed


def _tell(kind: str, requests: int, size: int) -> None:
    import msgspec
    from sglang.srt.runtime_context import get_parallel

    from tests.serving.batch_steps import MARK, Step

    step = Step(get_parallel().tp_rank, kind, requests, size)
    # In one piece, for another rank writes too.
    print(MARK + msgspec.json.encode(step).decode() + "\n", end="", flush=True)
