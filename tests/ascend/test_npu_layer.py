"""An MoE layer from its rows to its sums as `--device npu` runs it: windows in pooled memory, the library for Ascend
devices, SGLang's Ascend runner. Everything below them is a stand-in: memfabric and torch_npu
(`tests.windows.pooled_stand_ins`), the runner's operators (`tests.npu.operators`), CANN's runtime and
the kernels' host model. No NPU has run this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange import opening
from sglang_ascend_moe.exchange.device_backend import DeviceBackend
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.launch.trace.timeline import read_timelines
from sglang_ascend_moe.native import device_session
from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.native.library import use_library
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import layer
from tests.exchange.control.test_trace_file import CALLED
from tests.exchange.pool import Rank
from tests.serving.npu.layers import TOKENS, host_layer, never, npu_layer, serve, tokens_of
from tests.windows.pooled_stand_ins import SharedFile, in_place_of_devices

from .device_library import Cann, OneStream

DEADLINE_S = 240.0
"""Each rank imports SGLang first."""
LAYER, BATCHES = 3, 3


class AwaitedStream(OneStream):
    """Nothing runs late, for operators of the CPU, and the allocator of its tensors, do not wait for a stream."""

    def launch(self, tensors: Sequence[torch.Tensor], kernel: int, session: int, call: int, most_rows: int) -> None:
        super().launch(tensors, kernel, session, call, most_rows)
        assert self.cann.library.aclrtSynchronizeStream(self.stream) == 0


def outputs(exchange: Exchange, moe: object, options: Options, rank: Rank, *, on_npu: bool) -> list[torch.Tensor]:
    """Of batches that differ from rank to rank, one of them empty."""
    with pytest.MonkeyPatch.context() as patch:
        serve(patch, moe, exchange, options, on_npu=on_npu)
        counts = (TOKENS - rank.rank, rank.rank, 0 if rank.rank else 7)
        return [layer.forward(never, moe, *tokens_of(rank.rank, count)) for count in counts]


def on_device(rank: Rank, path: str, folder: Path, program, *arguments: object) -> object:
    # SGLang is imported before anything stands in for torch_npu, which transformers looks for.
    npu_layer()
    use_library(path)
    cann = Cann(path)
    cann.library.cann_stand_in_use_cores(2)
    with in_place_of_devices(folder) as shared, pytest.MonkeyPatch.context() as patch:
        streams = AwaitedStream(cann)
        patch.setattr(device_session, "torch_streams", lambda: streams)
        try:
            return program(rank, shared, *arguments)
        finally:
            use_library(None)
            assert cann.violation() == ""


def compute(rank: Rank, shared: SharedFile, windows: str, schedule: str, weights: str | None) -> list[torch.Tensor]:
    moe = npu_layer(rank.size, rank.rank, weights=weights)
    options = Options(schedule=schedule, quant="int8" if weights else "none")
    created = {"max_tokens": TOKENS, "distinct_topk": True, "quant": "int8" if weights else None}
    created |= layer.shape_of(moe)._asdict()
    with pytest.MonkeyPatch.context() as patch:
        # Windows of a device for tensors of the CPU.
        patch.setattr(opening, "backend_of", on_device_of(windows))
        with Exchange.create(rank.group, **created) as exchange:
            found = outputs(exchange, moe, options, rank, on_npu=True)
    assert shared.calls[-1] in ("smem_shm_uninit", "finalize")
    return found


def on_device_of(windows: str):
    return lambda _options: DeviceBackend(torch.device("cpu"), windows)


def trace(rank: Rank, _shared: SharedFile, folder: str, schedule: str) -> None:
    moe = npu_layer(rank.size, rank.rank)
    moe.layer_id = LAYER
    shape = layer.shape_of(moe)._asdict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "backend_of", on_device_of("memfabric"))
        with Exchange.create(rank.group, max_tokens=TOKENS, **shape) as exchange:
            exchange.trace(folder)
            outputs(exchange, moe, Options(schedule=schedule), rank, on_npu=True)
            exchange.check_replays()


@pytest.mark.parametrize("schedule", ["decode", "prefill"])
def test_steps_of_layers_are_traced(pools, device_library, tmp_path, schedule):
    folder = tmp_path / "traces"
    pools.run(2, on_device, device_library, tmp_path, trace, str(folder), schedule, deadline_s=DEADLINE_S)
    (timeline,) = read_timelines(folder)
    assert timeline.missing == []
    assert set(timeline.lost.values()) == {0}
    kinds = {Kind.DECODE} if schedule == "decode" else {Kind.PLAN, Kind.PREFILL}
    for spans in timeline.spans.values():
        assert [span.step for span in spans if span.kind != Kind.PLAN] == CALLED * BATCHES
        assert {(span.layer, span.has_ended) for span in spans} == {(LAYER, True)}
        assert {span.kind for span in spans} == kinds


def compute_on_host(rank: Rank, schedule: str) -> list[torch.Tensor]:
    moe = host_layer(rank.size, rank.rank)
    shape = layer.shape_of(moe)._asdict()
    with Exchange.create(rank.group, max_tokens=TOKENS, distinct_topk=True, **shape) as exchange:
        return outputs(exchange, moe, Options(schedule=schedule), rank, on_npu=False)


CASES = [("memfabric", "decode"), ("memfabric", "prefill"), ("aclshmem", "decode")]


@pytest.mark.parametrize(("windows", "schedule"), CASES, ids=map("-".join, CASES))
def test_a_layer_gives_the_bits_of_the_host(pools, device_library, tmp_path, windows, schedule):
    found = pools.run(2, on_device, device_library, tmp_path, compute, windows, schedule, None, deadline_s=DEADLINE_S)
    expected = pools.run(2, compute_on_host, schedule, deadline_s=DEADLINE_S)
    for rank in range(2):
        for one, another in zip(found[rank], expected[rank], strict=True):
            assert torch.equal(one, another)
    assert all(sums[0].abs().sum() > 0 for sums in found)


# Relative to the plain layer: steps of 1 / 127 and of 1 / 7 of the largest of each row of numbers.
STEPS = {"W8A8_DYNAMIC": 0.02, "W4A8_DYNAMIC": 0.2}


@pytest.mark.parametrize("weights", STEPS)
def test_a_quantised_layer_is_within_the_steps_of_its_quantisation(pools, device_library, tmp_path, weights):
    found = pools.run(
        2, on_device, device_library, tmp_path, compute, "memfabric", "decode", weights, deadline_s=DEADLINE_S
    )
    expected = pools.run(2, compute_on_host, "decode", deadline_s=DEADLINE_S)
    for sums, plain in zip(found, expected, strict=True):
        error = (sums[0].float() - plain[0].float()).norm() / plain[0].float().norm()
        assert 0 < error < STEPS[weights]


def meet_a_peer_out_of_reach(rank: Rank, shared: SharedFile) -> list[str]:
    shared.unreachable = {1} if rank.rank == 0 else set()
    moe = npu_layer(rank.size, rank.rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "backend_of", on_device_of("memfabric"))
        with pytest.raises(Unsupported) as refused:
            Exchange.create(rank.group, max_tokens=TOKENS, **layer.shape_of(moe)._asdict())
    return [str(refused.value), *shared.calls]


def test_what_one_rank_cannot_have_is_refused_by_all_and_given_back(pools, device_library, tmp_path):
    said = pools.run(2, on_device, device_library, tmp_path, meet_a_peer_out_of_reach, deadline_s=DEADLINE_S)
    for text, *calls in said:
        assert text.startswith("rank 0: the NPU of rank 1 cannot be reached from that of rank 0")
        assert calls[-1] == "smem_shm_uninit"
