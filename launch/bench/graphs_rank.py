"""One rank of `ascend-moe bench graphs`: SGLang's model runner without scheduler, prefill once, then decode in turn.

A step that is repeated writes the keys and values of its token again, to the same place and of the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.launch.bench.graphs import RANKS, GraphsRecord, GraphsRun, server_flags

WARM_UP_STEPS = 5


class _Measured(NamedTuple):
    """What one rank measured of one batch."""

    eager_ms: float
    replay_ms: float
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

    server_args = prepare_server_args([*server_flags(run.checkpoint, max(run.batches)), "--ascend-moe-require-graphs"])
    server_args.resolve_once()
    ports = PortArgs.init_new(server_args)
    ports.nccl_port = run.port
    ranks = SpawnRanks(world_rank=spawn_world_rank(server_args, tp_rank=rank, pp_rank=0), gpu_id=rank)
    publish(server_args, role="scheduler", ranks=ranks)
    one_batch._init_process_global_configs()
    torch.set_num_threads(1)
    runner, _tokenizer = one_batch.load_model(server_args, ports, rank, rank)
    return runner.torch_runner


@torch.no_grad()
def measure(model_runner: Any, run: GraphsRun, rank: int, requests: int) -> _Measured:
    """Prefills `requests` prompts and takes the same decode step again and again, eagerly and replayed in turn."""
    from sglang.benchmark import one_batch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    model_runner.req_to_token_pool.clear()
    model_runner.token_to_kv_pool_allocator.clear()
    draw = torch.Generator().manual_seed(requests * RANKS + rank)
    vocabulary = model_runner.model_config.vocab_size
    prompts = torch.randint(10, vocabulary, (requests, run.prompt_tokens), generator=draw).tolist()
    prepared = one_batch.prepare_synthetic_inputs_for_latency_test(requests, run.prompt_tokens, prompts)
    for request in prepared:
        # SGLang numbers them, and asks for the text of the number where attention is data-parallel.
        request.rid = str(request.rid)
    tokens, _logits, batch = one_batch.extend(prepared, model_runner)
    batch.input_ids = tokens.to(torch.int64)
    batch.prepare_for_decode()

    graphs = model_runner.decode_cuda_graph_runner
    times: dict[bool, list[float]] = {True: [], False: []}
    logits: dict[bool, torch.Tensor] = {}
    identical = True
    for step in range(-WARM_UP_STEPS, run.steps):
        for replayed in (False, True):
            one_batch._maybe_prepare_mlp_sync_batch(batch, model_runner)
            forward_batch = ForwardBatch.init_new(batch, model_runner, return_hidden_states_before_norm=False)
            model_runner.decode_cuda_graph_runner = graphs if replayed else None
            begin = time.thread_time()
            output = model_runner.forward(forward_batch)
            spent = time.thread_time() - begin
            if output.can_run_graph is not replayed:
                raise CaptureRefused(f"no graph replays a decode batch of {requests} requests")
            logits[replayed] = output.logits_output.next_token_logits.clone()
            if step >= 0:
                times[replayed].append(spent * 1e3)
        identical = identical and torch.equal(logits[False], logits[True])
    model_runner.decode_cuda_graph_runner = graphs
    captured = graphs.backend.captures_of(requests)
    return _Measured(
        statistics.median(times[False]),
        statistics.median(times[True]),
        identical,
        max(item.seconds for item in captured),
        max(len(item.tape) for item in captured),
    )


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
        records.append(
            GraphsRecord(
                measured="step",
                batch=requests,
                eager_ms=max(item.eager_ms for item in ranks),
                replay_ms=max(item.replay_ms for item in ranks),
                ratio=min(item.eager_ms / item.replay_ms for item in ranks),
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
