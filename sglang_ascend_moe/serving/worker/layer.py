"""The MoE layer: SGLang's rows go through an exchange, the local experts run on its window.

One exchange per shape of layer and per process, shared by all layers of that shape: layers run one after the other.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import CaptureRefused, SessionPoisoned, Unsupported
from sglang_ascend_moe.exchange.collective_exchange import CollectiveExchange
from sglang_ascend_moe.exchange.control.secret import Secret, read_secret
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.expert_exchange import ExpertExchange, Phase
from sglang_ascend_moe.exchange.rank_options import RankOptions
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.machine_limits import Demand, read_limits, refuse_what_does_not_fit
from sglang_ascend_moe.serving.npu import experts
from sglang_ascend_moe.serving.options import READY_KEY, STARTUP_TIMES, Options, options_of
from sglang_ascend_moe.serving.worker import expert_location, host_experts, stage_groups
from sglang_ascend_moe.serving.worker.expert_activations import activation_of
from sglang_ascend_moe.serving.worker.gathered_batches import mlps_gather
from sglang_ascend_moe.serving.worker.moe_blocks import refuse_unknown_blocks
from sglang_ascend_moe.serving.worker.sizing import (
    SchedulerLimits,
    context_parallel,
    micro_batch,
    prefill_batch,
    sized,
    tokens_of_request,
    tokens_per_rank,
)
from sglang_ascend_moe.windows.layout import (
    ExchangeParameters,
    WindowMemory,
    exchange_parameters,
    expected_rounds,
    plan_window,
    window_memory,
)

logger = logging.getLogger(__name__)

ROW_DTYPES = {False: (torch.bfloat16, torch.float16, torch.float32), True: (torch.bfloat16, torch.float16)}
"""In which experts are computed, on the host (False) and on an NPU (True)."""


class LayerShape(NamedTuple):
    """What decides whether two layers can share an exchange. `hidden` in elements of `dtype`."""

    num_experts: int
    hidden: int
    topk: int
    dtype: torch.dtype


class Serving(NamedTuple):
    """What this process serves with, once its exchanges are open.

    rank, ranks: of the exchanges, which are those of one pipeline stage. exchanges: none in a stage without MoE layers.
    stage: its number, from 0, of `stages`. metrics: with `--enable-metrics`. secret: seals what ranks tell each other
    besides. decode_tokens: of a rank in one batch of the decode schedule, at most.
    """

    options: Options
    exchanges: dict[LayerShape, ExpertExchange]
    rank: int
    ranks: int
    metrics: bool
    decode_tokens: int
    secret: Secret | None = None
    on_npu: bool = False
    stage: int = 0
    stages: int = 1


_serving: Serving | None = None
_traced = False


def serving() -> Serving | None:
    """What this process serves with; None before its exchanges are open, and always without `--ascend-moe`."""
    return _serving


def exchanges() -> list[ExpertExchange]:
    """The open exchanges of this process; none without `--ascend-moe`."""
    return [] if _serving is None else list(_serving.exchanges.values())


def trace_into(folder: str | Path | None, traced: Iterable[ExpertExchange]) -> None:
    """From now on those of these exchanges that go over windows write down their steps in files in `folder`, or no
    more.

    Raises `InvalidInput` for a folder that cannot be written.
    """
    global _traced
    over_windows = [exchange for exchange in traced if isinstance(exchange, Exchange)]
    for exchange in over_windows:
        exchange.trace(folder, stage=_stage())
    _traced = folder is not None and bool(over_windows)


def shared_secret() -> Secret | None:
    """The secret of this process's ranks; None without `--ascend-moe-secret-file`."""
    return _serving.secret if _serving is not None else None


def check_before_model(model_runner: Any, *_: Any, **__: Any) -> None:
    """Before `ModelRunner.load_model`: every hook must be active in this worker too."""
    if options_of(model_runner.server_args) is not None:
        hooks.require_all()


def open_exchanges(_result: Any, model_runner: Any, *_: Any, **__: Any) -> None:
    """After `ModelRunner.alloc_memory_pool`, when the scheduler's limits are known: all ranks open their exchanges.

    A draft model comes after the model that it drafts for: exchanges are opened for MoE layers of another shape.

    Raises `Unsupported` for an MoE layer that the exchange cannot serve and for windows that do not fit the machine,
    `WindowTooSmall` and `InvalidInput` for flags that the limits of the scheduler exceed.
    """
    global _serving
    options = options_of(model_runner.server_args)
    if options is None or (_serving is not None and not model_runner.is_draft_worker):
        return
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.runtime_context import get_parallel

    layers = moe_layers(model_runner.model)
    if not layers and model_runner.is_draft_worker:
        return
    if _serving is None and not any(stage_groups.of_all_stages(bool(layers))):
        raise Unsupported("the model has no MoE layer that --ascend-moe knows: serve it without --ascend-moe")
    refuse_unknown_blocks(model_runner.model, FusedMoE)
    on_npu = hooks.on_npu()
    for layer in layers:
        _refuse_layer(layer)
        if on_npu:
            experts.prepare(layer, options)
    limits = batch_limits(model_runner.max_running_requests, model_runner.model_config.context_len)
    ranks = get_parallel().moe_ep_group.ranks
    device = torch.device("npu", model_runner.gpu_id) if on_npu else None
    parameters = _parameters_by_shape(layers, options, len(ranks), limits, device)
    if _serving is not None:
        parameters = {shape: chosen for shape, chosen in parameters.items() if shape not in _serving.exchanges}
        if not parameters:
            return
    # Windows of an NPU take its memory, which is asked for when they are opened.
    if parameters and options.schedule != "collective" and not on_npu:
        refuse_what_does_not_fit(Demand(len(ranks), _windows(parameters)), read_limits())
    opened = {shape: _open(options, ranks, chosen, device) for shape, chosen in parameters.items()}
    for exchange in opened.values():
        exchange.observation.counters.measures_imbalance = bool(model_runner.server_args.enable_metrics)
    if options.trace is not None:
        trace_into(options.trace, opened.values())
    if _serving is not None:
        _serving.exchanges.update(opened)
        return
    secret = read_secret(options.secret_file)
    expert_location.agree_at_start(layers, ranks, options, list(opened.values()), secret)
    _serving = Serving(
        options=options,
        exchanges=opened,
        rank=get_parallel().moe_ep_rank,
        ranks=len(ranks),
        metrics=bool(model_runner.server_args.enable_metrics),
        decode_tokens=_decode_tokens(options, limits),
        on_npu=on_npu,
        secret=secret,
        stage=get_parallel().pp_rank,
        stages=get_parallel().pp_size,
    )


def moe_layers(model: torch.nn.Module) -> list[Any]:
    """The MoE layers of a model of SGLang."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    return [module for module in model.modules() if isinstance(module, FusedMoE)]


def window_bytes(model: torch.nn.Module, options: Options, limits: SchedulerLimits) -> int:
    """Bytes of all windows of one rank, before they are opened; 0 for the baseline, which has none.

    Raises like `open_exchanges` for what the limits of the scheduler exceed.
    """
    from sglang.srt.runtime_context import get_parallel

    if options.schedule == "collective":
        return 0
    ranks = len(get_parallel().moe_ep_group.ranks)
    parameters = _parameters_by_shape(moe_layers(model), options, ranks, limits, None)
    return sum(window.total for window in _windows(parameters))


def _parameters_by_shape(
    layers: list[Any], options: Options, ranks: int, limits: SchedulerLimits, device: torch.device | None
) -> dict[LayerShape, ExchangeParameters]:
    """What the exchange of each shape of layer is opened with. Raises as `tokens_per_rank` and `sized`."""
    over_windows = options.schedule != "collective"
    max_tokens = tokens_per_rank(options, limits)
    parameters = {
        # SGLang's routers choose distinct experts for a token.
        shape: exchange_parameters(
            **shape._asdict(),
            ranks=ranks,
            max_tokens=max_tokens,
            timeout_s=options.timeout_s,
            distinct_topk=True,
            verify=over_windows and options.verify,
            quant=options.quant if over_windows and options.quant != "none" else None,
        )
        for shape in dict.fromkeys(map(shape_of, layers))
    }
    if not over_windows:
        return parameters
    device_bytes = None if device is None else torch.npu.mem_get_info(device)[1] // max(1, len(parameters))
    return {shape: sized(one, options, limits, device_bytes) for shape, one in parameters.items()}


def _decode_tokens(options: Options, limits: SchedulerLimits) -> int:
    """Of a rank in one batch of the decode schedule, at most."""
    return tokens_per_rank(options, limits) if options.schedule == "decode" else limits.decode_bound_per_rank


def _windows(parameters: Mapping[LayerShape, ExchangeParameters]) -> tuple[WindowMemory, ...]:
    """The windows of one rank."""
    return tuple(window_memory(plan_window(one)) for one in parameters.values())


def _open(
    options: Options, ranks: list[int], parameters: ExchangeParameters, device: torch.device | None
) -> ExpertExchange:
    from sglang.srt.runtime_context import get_parallel

    # A group of our own: SGLang's expert-parallel group is its tensor-parallel group, which attention uses as well.
    # For an exchange it serves bring-up only, when ranks may be as far apart as loading weights lets them be.
    collective = options.schedule == "collective"
    timeout = options.timeout_s if collective else options.bring_up_timeout_s
    group = stage_groups.new_group(ranks, timedelta(seconds=timeout))
    rank_options = RankOptions(
        node=get_parallel().node_rank if get_parallel().nnodes > 1 else None,
        device=device,
        windows=options.windows,
        post_mortem=options.post_mortem,
        secret_file=options.secret_file,
        bring_up_timeout_s=options.bring_up_timeout_s,
        stage=_stage(),
    )
    if collective:
        return CollectiveExchange.open(group, parameters, rank_options)
    exchange = Exchange.open(group, parameters, rank_options)
    p, rounds = parameters, expected_rounds(parameters, exchange.window.capacity_rows)
    logger.info(
        "Exchange is open: %d ranks, schedule %s, at most %d tokens per rank, %d experts, top %d, rows of %d %s."
        " So many tokens take %d round(s) if ranks receive alike, %d at worst. Window of %d bytes on each rank: %s",
        p.ranks,
        options.schedule,
        p.max_tokens,
        p.num_experts,
        p.topk,
        p.hidden,
        p.dtype,
        rounds.alike,
        rounds.worst,
        exchange.window.total,
        ", ".join(f"{name} {size}" for name, size in exchange.window.by_region().items()),
    )
    return exchange


def _stage() -> int | None:
    """Number of this rank's pipeline stage; None if there is only one."""
    from sglang.srt.runtime_context import get_parallel

    return get_parallel().pp_rank if get_parallel().pp_size > 1 else None


def batch_limits(running_requests: int, context: int) -> SchedulerLimits:
    """Most requests and tokens that SGLang's scheduler puts into one batch of one attention group.

    running_requests: under way at a time in all of its batches. context: length of the longest request.
    """
    from sglang.srt.runtime_context import get_disagg, get_parallel, get_schedule, get_spec

    schedule, parallel = get_schedule(), get_parallel()
    prefill, flag = prefill_batch(
        schedule.chunked_prefill_size,
        schedule.max_prefill_tokens,
        context,
        dynamic=schedule.enable_dynamic_chunking and parallel.pp_size > 1,
    )
    role, drafts = get_disagg().disaggregation_mode, tokens_of_request(get_spec())
    batch, ranks, divided = decode_batch(running_requests), parallel.attn_tp_size, context_parallel(parallel)
    return SchedulerLimits(batch, prefill, flag, ranks, role, drafts, parallel.pp_size, divided)


def decode_batch(running_requests: int) -> int:
    """Most requests of a decode batch of one attention group, of those under way."""
    from sglang.srt.runtime_context import get_disagg, get_parallel

    parallel = get_parallel()
    return micro_batch(
        running_requests,
        pp_size=parallel.pp_size,
        asked=parallel.pp_max_micro_batch_size,
        role=get_disagg().disaggregation_mode,
    )


def shape_of(layer: Any) -> LayerShape:
    """The shape of an MoE layer of SGLang."""
    return LayerShape(layer.num_experts, layer.hidden_size, layer.top_k, experts.row_dtype(layer))


def _refuse_layer(layer: Any) -> None:
    config = layer.moe_runner_config
    dtype = experts.row_dtype(layer)
    found = {
        f"rows in {dtype}": dtype not in ROW_DTYPES[hooks.on_npu()],
        "router weights on the input": config.apply_router_weight_on_input,
        "outputs that are not combined": config.no_combine,
        "fused shared experts (use --disable-shared-experts-fusion)": layer.num_fused_shared_experts > 0,
    }
    for what, present in found.items():
        if present:
            raise Unsupported(
                f"MoE layer {layer.layer_id} has {what}, which --ascend-moe does not support; serve it without"
            )
    if not hooks.on_npu():
        activation_of(layer)


def forward(original: Callable[..., Tensor], layer: Any, hidden_states: Tensor, topk_output: Any) -> Tensor:
    """Around SGLang's `forward_fuseep`: the MoE layer.

    hidden_states: [T, H] rows of this rank, T may be 0. topk_output: ids [T, K] (-1: not routed) and float32 weights.
    Returns [T, H], complete: summed over the experts of all ranks.
    """
    serving = _serving
    if serving is None:
        if _asked_for():
            raise SessionPoisoned("an MoE layer ran before its exchange was opened")
        return original(layer, hidden_states, topk_output)
    if launches.capturing():
        return _forward_in_graph(serving, layer, hidden_states.contiguous(), topk_output)
    # On an NPU what is found wrong comes to the host with the tokens of the step (`replay_verdicts`).
    return serving.exchanges[shape_of(layer)].run(
        hidden_states.contiguous(),
        topk_output.topk_ids,
        topk_output.topk_weights,
        lambda rows: compute_experts(serving, layer, rows),
        phase=_phase(serving.options),
        wait=False,
        most_tokens=_tokens_of_all_ranks() or serving.ranks * max(len(hidden_states), serving.decode_tokens),
    )


def _tokens_of_all_ranks() -> int | None:
    """What the running step's ranks bring together at most; None where SGLang does not tell them of each other."""
    from sglang.srt.layers.dp_attention import get_dp_global_num_tokens, is_dp_attention_enabled
    from sglang.srt.runtime_context import get_parallel

    tokens = get_dp_global_num_tokens() if is_dp_attention_enabled() else None
    if not tokens or len(tokens) == 1:
        return None
    # Where a text is not divided, each context-parallel rank brings all tokens of its group.
    return sum(tokens) * int(get_parallel().attn_cp_size)


def _replay_together() -> bool:
    """Whether all ranks replay graphs of one size: without gathers, groups of attention choose their own."""
    from sglang.srt.layers.dp_attention import is_dp_attention_enabled

    return not is_dp_attention_enabled() or mlps_gather()


def _forward_in_graph(serving: Serving, layer: Any, hidden_states: Tensor, topk_output: Any) -> Tensor:
    """The layer as one launch: dispatch, experts on as many rows as there are at each replay, combine."""
    schedule, exchange = serving.options.schedule, serving.exchanges[shape_of(layer)]
    if schedule == "collective" or _phase(serving.options) != "decode":
        raise CaptureRefused(
            f"--ascend-moe-schedule {schedule}: only the decode schedule runs in graphs; use auto, or"
            " --disable-cuda-graph"
        )

    own = len(hidden_states)
    most = serving.ranks * (own if _replay_together() else max(own, serving.decode_tokens))

    def bind(x: Tensor, ids: Tensor, weights: Tensor, out: Tensor) -> launches.Launch:
        return exchange.prepare(
            x, ids, weights, lambda rows: compute_experts(serving, layer, rows), out, most_tokens=most
        )

    out = torch.empty_like(hidden_states)
    launches.launch(bind, [hidden_states, topk_output.topk_ids, topk_output.topk_weights], [out])
    return out


def _asked_for() -> bool:
    from sglang.srt.runtime_context import get_server_args

    return options_of(get_server_args()) is not None


def _phase(options: Options) -> Phase:
    """decode or prefill, the same on every rank: SGLang's ranks agree on it, whatever each one's own batch is."""
    if options.schedule == "decode" or options.schedule == "prefill":
        return options.schedule
    from sglang.srt.layers.dp_attention import get_is_extend_in_batch

    return "prefill" if get_is_extend_in_batch() else "decode"


def compute_experts(serving: Serving, layer: Any, rows: ExpertRows) -> None:
    """Run the local experts of `layer` on the rows of the window; writes `rows.out`."""
    expert_location.record_dispatch(layer, rows.counts)
    # In the capture of a graph for replays that may be traced later.
    if _traced or serving.on_npu:
        rows.ticket.session.trace_layer(rows.ticket.call, layer.layer_id)
    compute = experts.compute if serving.on_npu else host_experts.compute
    compute(layer, rows)


def report_ready(info: dict[str, Any], _scheduler: Any) -> None:
    """After `Scheduler.get_init_info`: the launcher is told that this worker's exchange is open.

    It is told with the times of the start, because a controller of schedulers passes on nothing else in every release.
    """
    info[STARTUP_TIMES] = {**info[STARTUP_TIMES], READY_KEY: _serving is not None}


def report_all_ready(original: Callable[..., dict[str, Any]], startup_times: Iterable[Any]) -> dict[str, Any]:
    """Around `aggregate_scheduler_startup_times`: whether all schedulers behind a controller have said so."""
    times = list(startup_times)
    together = original(times)
    if times and all(one and one.get(READY_KEY) for one in times):
        together[READY_KEY] = True
    return together
