"""Deliberate damage, applied inside an engine's process before SGLang loads its plugins; its ranks inherit it."""

from tests.serving.block_patches import (  # noqa: F401 - called by their names
    use_blocks_of_deepseek_v4,
    use_blocks_of_gpt_oss,
    use_blocks_of_hunyuan,
    use_blocks_of_kimi_k3,
    use_blocks_of_mimo_v2,
    use_blocks_of_step3p5,
)


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


def hash_experts_that_move() -> None:
    """Before and after SGLang moves experts, each rank prints a hash of all that each of its experts consists of."""
    import hashlib

    import torch
    from sglang.srt.eplb import eplb_manager
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    move = eplb_manager.update_expert_location_with_recovery

    def print_hashes(when, model, rank):
        placement = get_global_expert_location_metadata().physical_to_logical_map_cpu
        for layer in (module for module in model.modules() if isinstance(module, FusedMoE)):
            parts = [part.data.cpu() for part in layer.parameters(recurse=False)]
            local = layer.num_local_experts
            for place in range(local):
                digest = hashlib.sha256()
                for part in parts:
                    digest.update(part[place].contiguous().view(torch.uint8).numpy().tobytes())
                logical = int(placement[layer.layer_id][rank * local + place])
                said = f"{when} rank {rank} layer {layer.layer_id} expert {logical} of {len(parts)}"
                # In one piece, for another rank writes too; and before it is killed.
                print(f"{said} {digest.hexdigest()}\n", end="", flush=True)

    def move_and_print(*, model, tp_rank, **keywords):
        print_hashes("before", model, tp_rank)
        move(model=model, tp_rank=tp_rank, **keywords)
        print_hashes("after", model, tp_rank)

    eplb_manager.update_expert_location_with_recovery = move_and_print


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
