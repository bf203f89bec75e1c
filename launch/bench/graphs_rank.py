"""One rank of `ascend-moe bench graphs`: SGLang's model runner without scheduler, prefill once, then steps in turn.

A step that is repeated writes the keys and values of its token again, to the same place and of the same bits.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.launch.bench.graphs import RANKS, GraphsRecord, GraphsRun, server_flags
from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.serving.worker.layer import exchanges

WARM_UP_STEPS = 5


class _Step(NamedTuple):
    """What one step took: CPU time of the main thread, and its work in exchanges, without waits."""

    cpu_ms: float
    exchange_ms: float


class _Measured(NamedTuple):
    """What one rank measured of one batch; see `GraphsRecord`. plain_exchange_ms: 0 where nothing is verified."""

    eager_ms: float
    replay_ms: float
    exchange_ms: float
    eager_exchange_ms: float
    plain_exchange_ms: float
    bit_identical: bool
    capture_s: float
    operators: int


def load(run: GraphsRun, rank: int) -> Any:
    """SGLang's model runner of this rank, its graphs captured."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.benchmark import one_batch
    from sglang.srt.runtime_context import SpawnRanks, publish, spawn_world_rank
    from sglang.srt.server_args import PortArgs, prepare_server_args

    # Where steps verify, beside requests of chains there are as many that decode as the chains have rows.
    most = max(run.batches) * (1 if run.tree == 1 else 1 + run.tree)
    chunk = ["--chunked-prefill-size", str(max(1024, most * RANKS * run.prompt_tokens))]
    graphs = ["--ascend-moe-require-graphs", "--cuda-graph-bs-decode", *map(str, run.batches)]
    server_args = prepare_server_args([*server_flags(run.checkpoint, most), *chunk, *graphs, *_draft_flags(run)])
    server_args.resolve_once()
    ports = PortArgs.init_new(server_args)
    ports.nccl_port = run.port
    ranks = SpawnRanks(world_rank=spawn_world_rank(server_args, tp_rank=rank, pp_rank=0), gpu_id=rank)
    publish(server_args, role="scheduler", ranks=ranks)
    one_batch._init_process_global_configs()
    torch.set_num_threads(1)
    runner, _tokenizer = one_batch.load_model(server_args, ports, rank, rank)
    return runner.torch_runner


def _draft_flags(run: GraphsRun) -> list[str]:
    """Those with which steps verify chains. Nothing is drafted, and no draft model is loaded."""
    if run.tree == 1:
        return []
    return [
        "--speculative-algorithm", "EAGLE", "--speculative-draft-model-path", run.checkpoint,
        "--speculative-num-steps", str(run.tree - 1), "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", str(run.tree),
    ]  # fmt: skip


@torch.no_grad()
def measure(model_runner: Any, run: GraphsRun, rank: int, requests: int) -> _Measured:
    """Prefills `requests` prompts and takes the same step again and again, eagerly and replayed in turn; where steps
    verify, also an eager one that decodes as many rows."""
    model_runner.req_to_token_pool.clear()
    model_runner.token_to_kv_pool_allocator.clear()
    graphs = model_runner.decode_cuda_graph_runner
    batch = _prefilled(model_runner, run, rank, requests)
    verifies = run.tree > 1
    step = _verification(model_runner, batch, run.tree) if verifies else _decoding(model_runner, batch)
    kinds = {"eager": (step, None), "replayed": (step, graphs)}
    if verifies:
        rows = _prefilled(model_runner, run, rank, requests * run.tree)
        kinds["plain"] = (_decoding(model_runner, rows), None)
    found: dict[str, list[_Step]] = {kind: [] for kind in kinds}
    logits: dict[str, torch.Tensor] = {}
    identical = True
    # The same order on all ranks, another one for each step.
    orders = random.Random(0)
    for number in range(-WARM_UP_STEPS, run.steps):
        for kind in orders.sample(list(kinds), len(kinds)):
            begin, runner = kinds[kind]
            model_runner.decode_cuda_graph_runner = runner
            forward_batch = begin()
            exchanged, spent = _exchange_ms(), time.thread_time()
            output = model_runner.forward(forward_batch)
            took = _Step((time.thread_time() - spent) * 1e3, _exchange_ms() - exchanged)
            if output.can_run_graph is not (runner is not None):
                raise CaptureRefused(f"no graph replays a decode batch of {requests} requests")
            logits[kind] = output.logits_output.next_token_logits.clone()
            if number >= 0:
                found[kind].append(took)
        identical = identical and torch.equal(logits["eager"], logits["replayed"])
    model_runner.decode_cuda_graph_runner = graphs
    captured = graphs.backend.captures_of(requests)
    middle = {kind: _Step(*map(statistics.median, zip(*steps, strict=True))) for kind, steps in found.items()}
    return _Measured(
        middle["eager"].cpu_ms,
        middle["replayed"].cpu_ms,
        middle["replayed"].exchange_ms,
        middle["eager"].exchange_ms,
        middle["plain"].exchange_ms if verifies else 0.0,
        identical,
        max(item.seconds for item in captured),
        max(len(item.tape) for item in captured),
    )


def _prefilled(model_runner: Any, run: GraphsRun, rank: int, requests: int) -> Any:
    """SGLang's batch of `requests` random prompts, which have been read."""
    from sglang.benchmark import one_batch

    draw = torch.Generator().manual_seed(requests * RANKS + rank)
    vocabulary = model_runner.model_config.vocab_size
    prompts = torch.randint(10, vocabulary, (requests, run.prompt_tokens), generator=draw).tolist()
    prepared = one_batch.prepare_synthetic_inputs_for_latency_test(requests, run.prompt_tokens, prompts)
    for request in prepared:
        # SGLang numbers them, and asks for the text of the number where attention is data-parallel.
        request.rid = str(request.rid)
    tokens, _logits, batch = one_batch.extend(prepared, model_runner)
    batch.input_ids = tokens.to(torch.int64)
    return batch


def _decoding(model_runner: Any, batch: Any) -> Callable[[], Any]:
    """What makes SGLang's `ForwardBatch` of a step that decodes."""
    from sglang.benchmark import one_batch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    batch.prepare_for_decode()

    def begin() -> Any:
        one_batch._maybe_prepare_mlp_sync_batch(batch, model_runner)
        return ForwardBatch.init_new(batch, model_runner, return_hidden_states_before_norm=False)

    return begin


def _verification(model_runner: Any, batch: Any, tree: int) -> Callable[[], Any]:
    """What makes SGLang's `ForwardBatch` of a step that verifies a chain of `tree` tokens of each request."""
    from sglang.benchmark import one_batch
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
    from sglang.srt.speculative.eagle_info import EagleVerifyInput
    from sglang.srt.speculative.eagle_utils import eagle_prepare_for_verify

    requests = len(batch.seq_lens)
    tokens = batch.input_ids.repeat_interleave(tree)
    columns = batch.seq_lens[:, None] + torch.arange(tree)
    slots = model_runner.token_to_kv_pool_allocator.alloc(requests * tree)
    table = model_runner.req_to_token_pool.req_to_token
    table[batch.req_pool_indices.long()[:, None], columns] = slots.view(requests, tree).to(table.dtype)
    # A graph reads masks where they are written once.
    mask = model_runner.attn_backend.verify_mask.buffer[: requests * tree**2]
    mask.view(requests, tree, tree).copy_(torch.ones(tree, tree, dtype=torch.bool).tril())
    links = torch.arange(requests * tree).view(requests, tree)
    worker = SimpleNamespace(model_runner=model_runner)

    def begin() -> Any:
        batch.forward_mode, batch.spec_info = ForwardMode.DECODE, None
        one_batch._maybe_prepare_mlp_sync_batch(batch, model_runner)
        batch.spec_info = EagleVerifyInput(
            draft_token=tokens,
            custom_mask=mask,
            positions=columns.flatten(),
            retrieve_index=links,
            retrieve_next_token=links,
            retrieve_next_sibling=links,
            retrieve_cum_len=None,
            spec_steps=tree - 1,
            topk=1,
            draft_token_num=tree,
            capture_hidden_mode=CaptureHiddenMode.FULL,
            seq_lens_sum=int(batch.seq_lens.sum()),
            seq_lens_cpu=batch.seq_lens_cpu,
        )
        forward_batch, _in_graph = eagle_prepare_for_verify(
            batch.spec_info, model_runner.req_to_token_pool, batch, worker
        )
        return forward_batch

    return begin


def _exchange_ms() -> float:
    """What this rank has worked in decode exchanges so far, without its waits for the other one."""
    spent = 0.0
    for exchange in exchanges():
        counted = exchange.observation.phases[Kind.DECODE]
        spent += (counted.dispatch_ns + counted.combine_ns) / 1e6 - sum(exchange.waited_s) * 1e3
    return spent


def main(argv: list[str]) -> int:
    """`RUN_FILE RANK`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("rank", type=int)
    parsed = parser.parse_args(argv)
    run = msgspec.json.decode(parsed.run.read_bytes(), type=GraphsRun)
    model_runner = load(run, parsed.rank)
    records = []
    for requests in run.batches:
        own = measure(model_runner, run, parsed.rank, requests)
        everyone: list[Any] = [None] * RANKS
        dist.all_gather_object(everyone, tuple(own))
        ranks = [_Measured(*item) for item in everyone]
        plain_ms = sum(item.plain_exchange_ms for item in ranks)
        records.append(
            GraphsRecord(
                measured="verify" if run.tree > 1 else "step",
                batch=requests,
                eager_ms=max(item.eager_ms for item in ranks),
                replay_ms=max(item.replay_ms for item in ranks),
                ratio=min(item.eager_ms / item.replay_ms for item in ranks),
                exchange_ms=max(item.exchange_ms for item in ranks),
                rows_ratio=sum(item.eager_exchange_ms for item in ranks) / plain_ms if plain_ms else None,
                bit_identical=all(item.bit_identical for item in ranks),
                capture_s=max(item.capture_s for item in ranks),
                count=run.steps,
                operators=max(item.operators for item in ranks),
            )
        )
    if parsed.rank == 0:
        Path(run.results).write_bytes(msgspec.json.encode(records))
    dist.barrier()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
