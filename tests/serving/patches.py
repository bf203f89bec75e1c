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


def forget_moe_blocks() -> None:
    """No MoE block of SGLang is known to our layer, as if the model's were a new one."""
    from sglang_ascend_moe.serving.worker import moe_blocks

    moe_blocks.KNOWN_BLOCKS = ()


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
    import functools

    from sglang_ascend_moe.serving.worker import layer
    from tests.npu.operators.experts import swiglu

    open_exchanges = layer.open_exchanges

    @functools.wraps(open_exchanges)
    def opened(*arguments, **keywords):
        open_exchanges(*arguments, **keywords)
        activations = layer._serving.activations | {"silu": lambda rows: swiglu(rows, -1)}
        layer._serving = layer._serving._replace(activations=activations)

    layer.open_exchanges = opened


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


def start_processes_by_forking() -> None:
    """Processes of an engine on the emulated NPU are forked, as on a host: SGLang is imported, no die is open yet."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_ascend_moe.serving.host import process_start

    for method in ("_launch_scheduler_processes", "_launch_detokenizer_subprocesses"):
        target = f"sglang.srt.entrypoints.engine.Engine.{method}"
        HookRegistry.register(target, process_start.launch_by_forking, HookType.AROUND)
    controller = "sglang.srt.managers.data_parallel_controller.DataParallelController"
    HookRegistry.register(f"{controller}.__init__", process_start.spawn_processes, HookType.BEFORE)


def count_decode_steps() -> None:
    """On emulated NPUs, what each decode step asks of the device goes into the log, as one line of JSON."""
    import json

    from sglang.srt.managers.scheduler import Scheduler

    from tests.npu.device.library import native
    from tests.serving.decode_steps import MARK

    run_batch = Scheduler.run_batch

    def counted(scheduler, batch, *arguments, **keywords):
        before = native().counters()
        result = run_batch(scheduler, batch, *arguments, **keywords)
        if batch.forward_mode.is_decode():
            after = native().counters()
            calls = {name: counts[0] - before.get(name, (0, 0))[0] for name, counts in after.items()}
            print(MARK + json.dumps({name: count for name, count in calls.items() if count}), flush=True)
        return result

    Scheduler.run_batch = counted
