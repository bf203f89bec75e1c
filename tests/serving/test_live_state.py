"""A running engine says what its exchanges do, the same over `/server_info` and over Prometheus, and says it right."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes
from sglang_ascend_moe.launch.trace.timeline import read_timelines
from sglang_ascend_moe.launch.trace.trace_summary import rows_of_layers
from sglang_ascend_moe.serving.worker.live_state import RankState
from tests.serving.configurations import PARALLEL, ours
from tests.serving.engine_messages import Inspected
from tests.serving.engines import Engine

RANKS = 2
NEW_TOKENS = 5
EXPORT_SECONDS = 60.0
SIZES = TinySizes()

# What the rank that holds experts 0, 1, ... receives when every token goes there, per token and layer.
ROWS_PER_TOKEN = SIZES.topk * SIZES.layers


class Numbers(NamedTuple):
    """The samples of one scrape: (name, labels as sorted pairs) -> value."""

    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def __call__(self, name: str, **labels: object) -> float:
        return self.samples[
            f"ascend_moe_{name}_total", tuple(sorted((key, str(value)) for key, value in labels.items()))
        ]

    def since(self, before: "Numbers", name: str, **labels: object) -> float:
        return self(name, **labels) - before(name, **labels)


def numbers_of(inspected: Inspected) -> Numbers:
    families = text_string_to_metric_families(inspected.metrics)
    return Numbers(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
    )


def settled(engine: Engine) -> Iterator[Inspected]:
    """What the engine says, again and again until it has exported everything that it has counted."""
    deadline = time.monotonic() + EXPORT_SECONDS
    while time.monotonic() < deadline:
        inspected = engine.inspect()
        yield inspected
    pytest.fail("the metrics never were those of the state")


def inspect_when_exported(engine: Engine) -> tuple[list[RankState], Numbers]:
    for inspected in settled(engine):
        states = inspected.states[0]
        numbers = numbers_of(inspected)
        counted = [state.exchanges[0].phases[phase].rounds for state in states for phase in ("prefill", "decode")]
        try:
            exported = [numbers("rounds", moe_ep_rank=s.rank, phase=p) for s in states for p in ("prefill", "decode")]
        except KeyError:
            # A process writes its counters when it exports for the first time.
            continue
        if counted == exported:
            # Ranks write numbers into several files, which are read one after the other: when they answer again, they
            # have written all.
            inspected = engine.inspect()
            return inspected.states[0], numbers_of(inspected)
    raise AssertionError


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def engine(fork_server, checkpoint, prompts, traces) -> Iterator[Engine]:
    """An engine that has answered every prompt, one after the other, all rows going to rank 0."""
    config = ours(
        checkpoint,
        "float32",
        "route_to_the_first_experts",
        enable_metrics=True,
        ascend_moe_trace=str(traces),
        # A graph replays what was captured, whatever the routing is replaced by.
        cuda_graph_backend_decode="disabled",
        disable_overlap_schedule=True,
        disable_radix_cache=True,
    )
    with fork_server.start(config) as engine:
        engine.generate(prompts, NEW_TOKENS)
        yield engine


@pytest.fixture(scope="module")
def observed(engine) -> tuple[list[RankState], Numbers]:
    """State and metrics of that engine."""
    return inspect_when_exported(engine)


@pytest.fixture(scope="module")
def tokens(prompts) -> dict[str, int]:
    """Tokens that went through the model, by phase."""
    return {"prefill": sum(map(len, prompts)), "decode": len(prompts) * (NEW_TOKENS - 1)}


@pytest.fixture(scope="module")
def calls(prompts) -> dict[str, int]:
    """MoE layers that every rank ran, by phase: each prompt is one prefill batch."""
    return {"prefill": len(prompts) * SIZES.layers, "decode": len(prompts) * (NEW_TOKENS - 1) * SIZES.layers}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_metrics_are_those_of_the_known_routing(observed, tokens, calls, phase):
    _, numbers = observed
    for rank in range(RANKS):
        assert numbers("layer_calls", moe_ep_rank=rank, phase=phase) == calls[phase]
        assert numbers("rounds", moe_ep_rank=rank, phase=phase) == calls[phase]
        assert numbers("dispatch_seconds", moe_ep_rank=rank, phase=phase) > 0
        assert numbers("combine_seconds", moe_ep_rank=rank, phase=phase) > 0
        # Every rank counts the rows of the busiest, which is always rank 0.
        assert numbers("largest_rows", moe_ep_rank=rank, phase=phase) == tokens[phase] * ROWS_PER_TOKEN
    rows = [numbers("rows", moe_ep_rank=rank, phase=phase) for rank in range(RANKS)]
    assert rows == [tokens[phase] * ROWS_PER_TOKEN, 0]
    brought = sum(numbers("tokens", moe_ep_rank=rank, phase=phase) for rank in range(RANKS))
    assert brought >= tokens[phase] * SIZES.layers


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_exchange_is_in_the_histograms(observed, calls, phase):
    _, numbers = observed
    for rank in range(RANKS):
        labels = (("moe_ep_rank", str(rank)), ("phase", phase))
        for name in ("dispatch_duration_seconds", "combine_duration_seconds", "exchange_wait_seconds", "exchange_rows"):
            assert numbers.samples[f"ascend_moe_{name}_count", labels] == calls[phase], name
        assert numbers.samples["ascend_moe_exchange_rows_sum", labels] == numbers("rows", moe_ep_rank=rank, phase=phase)
        # All rows go to rank 0.
        assert numbers.samples["ascend_moe_exchange_imbalance_sum", labels] == RANKS * calls[phase]


@pytest.mark.usefixtures("observed")
def test_every_exchange_of_every_layer_is_traced(tokens, calls, traces):
    (timeline,) = read_timelines(traces)
    layers = rows_of_layers(timeline)
    assert [one.layer for one in layers] == list(range(SIZES.layers))
    for one in layers:
        assert one.exchanges == sum(calls.values()) // SIZES.layers
        # All rows go to rank 0.
        assert one.rows == [sum(tokens.values()) * SIZES.topk, 0]
        assert one.imbalance == RANKS


def test_waits_are_counted_by_peer(observed):
    states, numbers = observed
    for state in states:
        exported = [numbers("wait_seconds", moe_ep_rank=state.rank, peer=peer) for peer in range(RANKS)]
        assert exported == pytest.approx(state.exchanges[0].waited_s)
    assert sum(sum(state.exchanges[0].waited_s) for state in states) > 0


def test_the_state_has_every_rank_and_is_that_of_the_metrics(observed, calls):
    states, numbers = observed
    assert [(state.rank, state.ranks) for state in states] == [(rank, RANKS) for rank in range(RANKS)]
    for state in states:
        (exchange,) = state.exchanges
        for phase, counted in exchange.phases.items():
            assert counted.rounds == calls[phase]
            for name in ("tokens", "rows"):
                assert getattr(counted, name) == numbers(name, moe_ep_rank=state.rank, phase=phase)
        # A prefill call is a plan and one round.
        assert exchange.epochs == [2 * calls["prefill"] + calls["decode"]] * RANKS
        assert exchange.rows_by_rank == [SIZES.topk, 0]
        assert numbers("graph_replays", moe_ep_rank=state.rank) == state.graphs.replays


def test_state_log_and_metrics_tell_options_and_the_window_that_was_planned(observed, engine):
    states, numbers = observed
    for state in states:
        (exchange,) = state.exchanges
        assert (state.options.schedule, state.options.verify) == ("auto", True)
        planned = Exchange.memory(
            ranks=RANKS,
            num_experts=SIZES.experts,
            hidden=SIZES.hidden,
            max_tokens=exchange.max_tokens,
            topk=SIZES.topk,
            distinct_topk=True,
            verify=True,
            dtype=torch.float32,
        )
        assert (exchange.window_bytes, exchange.regions) == (planned.total, planned.by_region())
        assert exchange.capacity_rows == planned.capacity_rows
        assert numbers.samples["ascend_moe_window_rows", (("moe_ep_rank", str(state.rank)),)] == planned.capacity_rows
    regions = ", ".join(f"{name} {size}" for name, size in planned.by_region().items())
    assert engine.log.read_text().count(f"Window of {planned.total} bytes on each rank: {regions}") == RANKS


@pytest.mark.nightly
def test_data_parallel_attention_reports_every_rank_too(fork_server, checkpoint, prompts):
    config = ours(checkpoint, "bfloat16", enable_metrics=True, **PARALLEL["dp2-attention-ep2"])
    with fork_server.start(config) as engine:
        _, before = inspect_when_exported(engine)
        engine.generate(prompts[:2], NEW_TOKENS, together=True)
        states, numbers = inspect_when_exported(engine)
    assert [state.rank for state in states] == [0, 1]
    assert states[0].exchanges[0].epochs == states[1].exchanges[0].epochs
    received = sum(numbers.since(before, "rows", moe_ep_rank=rank, phase="prefill") for rank in range(RANKS))
    # Rows with which SGLang pads a batch across ranks are routed as well.
    assert received >= sum(map(len, prompts[:2])) * ROWS_PER_TOKEN


def test_replays_of_graphs_are_counted_and_so_are_their_layers(fork_server, checkpoint, prompts):
    config = ours(checkpoint, "float32", enable_metrics=True, disable_overlap_schedule=True)
    with fork_server.start(config) as engine:
        states_before, before = inspect_when_exported(engine)
        engine.generate(prompts[:2], NEW_TOKENS)
        states, numbers = inspect_when_exported(engine)
    for rank, state in enumerate(states):
        assert state.graphs.state == "tape"
        assert state.graphs.buckets == states_before[rank].graphs.buckets != []
        assert state.graphs.replays - states_before[rank].graphs.replays == 2 * (NEW_TOKENS - 1)
        assert numbers("graph_replays", moe_ep_rank=rank) == state.graphs.replays
        layers = numbers.since(before, "layer_calls", moe_ep_rank=rank, phase="decode")
        assert layers == 2 * (NEW_TOKENS - 1) * SIZES.layers
