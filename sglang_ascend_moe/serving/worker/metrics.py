"""The exchange's numbers on SGLang's Prometheus endpoint, with `--enable-metrics`.

Each scheduler process adds what has happened since the last time to its counters, which prometheus_client keeps in
files that SGLang's `/metrics` puts together: after a batch, at most once a second, and when the scheduler goes idle.
"""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from sglang_ascend_moe.exchange import observation
from sglang_ascend_moe.exchange.expert_exchange import ExpertExchange
from sglang_ascend_moe.exchange.observation import PHASES, Histogram, Observation
from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.serving.worker import layer

INTERVAL_NS = 10**9
NANOSECONDS = 1e-9


class Metric(NamedTuple):
    """A counter with the label `phase`, from a field of `PhaseCounts`; `unit` is what one of it is worth."""

    name: str
    field: str
    meaning: str
    unit: float = 1


PHASE_METRICS = (
    Metric("ascend_moe_layer_calls", "calls", "MoE layers that were run"),
    Metric("ascend_moe_rounds", "rounds", "exchanges of rows; in prefill a call may take several"),
    Metric("ascend_moe_tokens", "tokens", "tokens that this rank brought"),
    Metric("ascend_moe_rows", "rows", "rows that this rank received for its experts"),
    Metric("ascend_moe_largest_rows", "largest_rows", "rows of the rank that received most, summed over rounds"),
    Metric("ascend_moe_dispatch_seconds", "dispatch_ns", "time in dispatch, waits and plans included", NANOSECONDS),
    Metric("ascend_moe_combine_seconds", "combine_ns", "time in combine, waits included", NANOSECONDS),
)
HISTOGRAMS = {
    "dispatch_seconds": Metric("ascend_moe_dispatch_duration_seconds", "", "time of a dispatch, waits included"),
    "combine_seconds": Metric("ascend_moe_combine_duration_seconds", "", "time of a combine, waits included"),
    "wait_seconds": Metric("ascend_moe_exchange_wait_seconds", "", "time for which peers held an exchange up"),
    "rows": Metric("ascend_moe_exchange_rows", "", "rows that this rank received in an exchange"),
    "imbalance": Metric("ascend_moe_exchange_imbalance", "", "rows of the busiest rank over the mean of an exchange"),
    "rounds": Metric("ascend_moe_call_rounds", "", "rounds of a prefill call"),
}
"""By the name in `Observation.histograms`."""
WAIT_METRIC = Metric("ascend_moe_wait_seconds", "", "time for which `peer` held this rank up")
REPLAY_METRIC = Metric("ascend_moe_graph_replays", "", "decode graphs replayed")
WINDOW_METRIC = Metric("ascend_moe_window_rows", "", "rows that the smallest window holds; 0: there are none")
"""A gauge."""


class Exporter:
    """The counters of one process. Made after SGLang has told prometheus_client where its files are."""

    def __init__(self, rank: int, ranks: int, stage: int | None = None) -> None:
        """stage: of the pipeline; None: there is only one, and no label for it."""
        from prometheus_client import Counter, Gauge, Histogram

        own = {"moe_ep_rank": rank} | ({} if stage is None else {"pp_rank": stage})

        def counter(metric: Metric, *labels: str) -> Counter:
            return Counter(metric.name, metric.meaning, [*own, *labels])

        self._phases = {
            (metric, kind): phases.labels(*own.values(), phase)
            for metric in PHASE_METRICS
            for phases in [counter(metric, "phase")]
            for kind, phase in PHASES.items()
        }
        bounds = {name: found.bounds for name, found in Observation(ranks).histograms(Kind.DECODE).items()}
        self._histograms = {
            (name, kind): phases.labels(*own.values(), phase)
            for name, metric in HISTOGRAMS.items()
            for phases in [Histogram(metric.name, metric.meaning, [*own, "phase"], buckets=bounds[name])]
            for kind, phase in PHASES.items()
        }
        waits = counter(WAIT_METRIC, "peer")
        self._waits = [waits.labels(*own.values(), peer) for peer in range(ranks)]
        self._replays = counter(REPLAY_METRIC).labels(*own.values())
        window = Gauge(WINDOW_METRIC.name, WINDOW_METRIC.meaning, [*own], multiprocess_mode="mostrecent")
        self._window = window.labels(*own.values())
        self._exported: dict[Any, float] = {}
        self._exported_ns = 0
        self._exported_rounds = 0

    def due(self, observations: Iterable[Observation], *, idle: bool) -> bool:
        """Whether there is something new; while batches follow each other, at most once a second."""
        if not idle and time.monotonic_ns() - self._exported_ns < INTERVAL_NS:
            return False
        return _rounds(observations) != self._exported_rounds

    def export(self, exchanges: Iterable[ExpertExchange]) -> None:
        """Bring the counters up to what the exchanges have counted."""
        exchanges = list(exchanges)
        observations = [exchange.observation for exchange in exchanges]
        for kind in PHASES:
            found = [counted.histograms(kind) for counted in observations]
            for name in HISTOGRAMS:
                self._add_to_histogram(self._histograms[name, kind], [histograms[name] for histograms in found])
        phases = [counted.phases for counted in observations]
        for (metric, kind), child in self._phases.items():
            total = sum(getattr(counted[kind], metric.field) for counted in phases)
            self._add(child, total * metric.unit)
        waited = zip(*(exchange.waited_s for exchange in exchanges), strict=True)
        # Shorter where an exchange does not know whom it waited for.
        for child, seconds in zip(self._waits, waited, strict=False):
            self._add(child, sum(seconds))
        self._window.set(min(exchange.window.capacity_rows for exchange in exchanges))
        self._add(self._replays, observation.graphs.replays)
        self._exported_ns = time.monotonic_ns()
        self._exported_rounds = _rounds(observations)

    def _add_to_histogram(self, child: Any, found: list[Histogram]) -> None:
        """What `observe` does for each value, for all of them at once: prometheus_client has no other way."""
        for bucket, counts in zip(child._buckets, zip(*(one.counts for one in found), strict=True), strict=True):
            self._add(bucket, sum(counts))
        self._add(child._sum, sum(one.sum for one in found))

    def _add(self, child: Any, total: float) -> None:
        child.inc(total - self._exported.get(child, 0))
        self._exported[child] = total


def _rounds(observations: Iterable[Observation]) -> int:
    return sum(counted.rounds for counted in observations)


_exporter: Exporter | None = None


def keep_values_in_files(*_: Any, **__: Any) -> None:
    """After `set_prometheus_multiproc_dir`: prometheus_client decides when it is imported, which may be too early."""
    from prometheus_client import values

    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call] # has no annotations


def export_after_batch(_result: None, _scheduler: Any, *_: Any, **__: Any) -> None:
    """After `Scheduler.process_batch_result`."""
    _export(idle=False)


def export_when_idle(_scheduler: Any) -> None:
    """Before `Scheduler.on_idle`, which an idle scheduler calls again and again, and which may sleep."""
    _export(idle=True)


def _export(*, idle: bool) -> None:
    global _exporter
    serving = layer.serving()
    if serving is None or not serving.metrics:
        return
    if _exporter is None:
        _exporter = Exporter(serving.rank, serving.ranks, serving.stage if serving.stages > 1 else None)
    exchanges = serving.exchanges.values()
    if _exporter.due((exchange.observation for exchange in exchanges), idle=idle):
        _exporter.export(exchanges)
