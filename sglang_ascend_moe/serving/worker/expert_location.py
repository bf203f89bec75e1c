"""Redundant experts: where SGLang puts them is agreed by all ranks, and its recorder gets the counts of our dispatch.

A logical expert, which the router names, may stand on several ranks: each of these places is a physical expert, and it
is physical experts that the exchange moves rows to. SGLang's load balancer (EPLB) moves them between ranks at run time,
by what its recorder has counted. Experts of a draft model stay where they are, and are not counted.
`agree_before_update`, `gatherer`, `all_places` and `record_no_drafts` are hooks: see `worker_hooks`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.control.expert_placement import PlacementAgreement
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.expert_exchange import ExpertExchange
from sglang_ascend_moe.serving.options import Options, options_of
from sglang_ascend_moe.serving.worker import stage_groups

logger = logging.getLogger(__name__)


class _Located(NamedTuple):
    """Layers whose placement the ranks agree on: layer -> number of physical experts, and by what they agree."""

    physical_experts: dict[int, int]
    agreement: PlacementAgreement
    epochs: Callable[[], list[int]]


_located: _Located | None = None


def agree_at_start(
    layers: Iterable[Any],
    ranks: Sequence[int],
    options: Options,
    exchanges: Sequence[ExpertExchange],
    secret: Secret | None = None,
) -> None:
    """All ranks compare where SGLang has put the experts of their MoE `layers` (SGLang's `FusedMoE`).

    ranks: global ranks of the exchange, of which a group is made. exchanges: those that are open, for their epochs.
    secret: seals what the ranks tell each other.

    Raises on every rank like `PlacementAgreement.agree`, and `Unsupported` for redundant experts of a model for which
    SGLang keeps no placement.
    """
    global _located
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
    from sglang.srt.runtime_context import get_exec

    metadata = get_global_expert_location_metadata()
    if metadata is None:
        if get_exec().moe.ep_num_redundant_experts > 0:
            raise Unsupported(
                "--ep-num-redundant-experts: SGLang keeps no placement of experts for this model, so that nothing would"
                " be routed to them; leave it out"
            )
        return
    physical_experts = {layer.layer_id: layer.num_experts for layer in layers if _is_located(layer)}
    if not physical_experts:
        return
    patience = timedelta(seconds=max(options.timeout_s, options.bring_up_timeout_s))
    group = stage_groups.new_group(list(ranks), patience)
    _located = _Located(
        physical_experts,
        PlacementAgreement(group, options.timeout_s, secret, options.bring_up_timeout_s),
        lambda: [exchange.epoch for exchange in exchanges],
    )
    _agree(_located, metadata, physical_experts)


def _is_located(layer: Any) -> bool:
    """Whether the experts of a layer of SGLang are where its placement says: up to 0.5.22 those of every layer are."""
    return getattr(layer, "uses_expert_location", True)


def agree_before_update(
    _updater: Any,
    routed_experts_weights_of_layer: Mapping[int, list[Tensor]],  # noqa: ARG001
    new_expert_location_metadata: Any,
    update_layer_ids: Sequence[int],
    *_: Any,
    **__: Any,
) -> None:
    """Before `ExpertLocationUpdater.update` moves experts between ranks: all ranks want the same move.

    SGLang calls it after a forward pass, when no exchange is under way. Raises on every rank before a weight has moved.
    """
    if _located is None:
        return
    moved = _agree(_located, new_expert_location_metadata, update_layer_ids)
    logger.info("All ranks agreed to move experts: %d places of layers %s change", moved, list(update_layer_ids))


def _agree(located: _Located, metadata: Any, layers: Iterable[int]) -> int:
    placement = metadata.physical_to_logical_map_cpu
    chosen = {layer: placement[layer].tolist() for layer in layers if layer in located.physical_experts}
    moved = located.agreement.agree(chosen, metadata.num_logical_experts, located.epochs())
    for layer, experts in chosen.items():
        if len(experts) != located.physical_experts[layer]:
            raise Unsupported(
                f"SGLang places {len(experts)} experts in layer {layer}, which was built for"
                f" {located.physical_experts[layer]}; change --init-expert-location or --ep-num-redundant-experts"
            )
    return moved


def gatherer(original: Callable[..., Any], expert_location_metadata: Any, rank: int) -> Any:
    """Around `_SinglePassGatherer.init_new`, which makes what collects the counts of one forward pass for SGLang's
    recorder of expert distributions: here they are of the rows that arrived at each local expert.

    The mode that writes down single tokens (`per_token`) keeps SGLang's own, which counts what the router chose.
    """
    from sglang.srt.eplb.expert_distribution import _DeepepLowLatencySinglePassGatherer
    from sglang.srt.runtime_context import get_exec

    if not _asked_for() or get_exec().moe.expert_distribution_recorder_mode == "per_token":
        return original(expert_location_metadata, rank)
    return _DeepepLowLatencySinglePassGatherer(expert_location_metadata, rank)


def all_places(
    original: Callable[..., list[int]],
    metadata: Any,
    layer_id: int,
    logical_expert_id: int,
    require_global_experts: bool = False,
) -> list[int]:
    """Around `ExpertLocationMetadata.logical_to_all_physical`, by which weights are loaded: every place of an expert.

    SGLang has left only the nearest one of those that a rank holds itself; the weights of another would stay undefined.
    """
    placement = metadata.physical_to_logical_map_cpu
    if not _asked_for() or require_global_experts or layer_id >= len(placement):
        return original(metadata, layer_id, logical_expert_id, require_global_experts)
    return (placement[layer_id] == logical_expert_id).nonzero().flatten().tolist()


def record_no_drafts(original: Callable[..., Any], model_runner: Any, *arguments: Any, **keywords: Any) -> Any:
    """Around `ModelRunner.forward`: SGLang's recorder does not see the passes of a draft model.

    It would take each for a pass of the model without rows, which EPLB forgets an earlier one for.
    """
    from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder

    recorder = get_global_expert_distribution_recorder()
    if options_of(model_runner.server_args) is None or not (model_runner.is_draft_worker and recorder.recording):
        return original(model_runner, *arguments, **keywords)
    # `stop_record` would forget what has been counted.
    recorder._recording = False
    try:
        return original(model_runner, *arguments, **keywords)
    finally:
        recorder._recording = True


def record_dispatch(layer: Any, counts: Tensor) -> None:
    """Tell SGLang's recorder, if it records, what arrived for an MoE layer of the model in one round.

    counts: int64 [experts of this rank].
    """
    from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder

    recorder = get_global_expert_distribution_recorder()
    # The one layer of a draft model has the number of a layer of the model. SGLang 0.5.22, which is served without
    # drafts, does not say of a layer whose it is.
    if getattr(layer, "is_draft", False) or not recorder.recording:
        return
    # The model says which layer it is in, but not while a graph replays it.
    known = recorder._current_layer_idx.value is not None
    with nullcontext() if known else recorder.with_current_layer(layer.layer_id):
        recorder.on_deepep_dispatch_low_latency(counts)


def _asked_for() -> bool:
    from sglang.srt.runtime_context import get_server_args

    return options_of(get_server_args()) is not None
