"""What ranks do in the tests of ACL graphs: SGLang's NPU graph backend over the stand-in, our hooks, an exchange."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from sglang_ascend_moe import Exchange, launches
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.graph_capture.runners import npu_runner
from sglang_ascend_moe.serving import hooks, plugin
from sglang_ascend_moe.serving.hooks import State, Where
from sglang_ascend_moe.serving.worker import layer
from tests.exchange.pool import Rank
from tests.graph_capture import npu_stand_in

EXPERTS, HIDDEN, TOPK, MOST = 4, 16, 2, 4
OPTIONS = {"num_experts": EXPERTS, "hidden": HIDDEN, "max_tokens": MOST, "topk": TOPK, "dtype": torch.float32}


@torch.library.custom_op("npu_stand_in::attend", mutates_args=())
def attend(query: torch.Tensor, *, actual_seq_lengths_kv: list[int]) -> torch.Tensor:
    """In the place of an attention operator: what it computes depends on lengths that the host gives it."""
    return query + torch.tensor(actual_seq_lengths_kv, dtype=query.dtype)[:, None]


def double(rows: ExpertRows) -> None:
    """Experts as a device runs them: on the whole window, without looking at the counts."""
    torch.mul(rows.rows, 2, out=rows.out)


class Model:
    """A decode step of `batch` requests over buffers that stay: attention, router, exchange, output projection."""

    def __init__(self, exchange: Exchange, batch: int) -> None:
        self.exchange = exchange
        self.batch = batch
        generator = torch.Generator().manual_seed(7)
        self.router = torch.randn(HIDDEN, EXPERTS, generator=generator)
        self.out = torch.randn(HIDDEN, HIDDEN, generator=generator)
        self.x = torch.zeros(batch, HIDDEN)
        self.lengths = [1] * batch
        self.experts = double

    def step(self) -> Any:
        """What SGLang captures: returns logits [batch, hidden]."""
        from sglang.srt.layers.logits_processor import LogitsProcessorOutput

        hidden = torch.ops.npu_stand_in.attend(self.x, actual_seq_lengths_kv=self.lengths)
        weights, ids = (hidden @ self.router).softmax(dim=-1).topk(TOPK)
        if launches.capturing():
            mixed = torch.empty_like(hidden)
            launches.launch(self._bind, [hidden, ids, weights], [mixed])
        else:
            mixed = self.exchange.run(hidden, ids, weights, self.experts)
        return LogitsProcessorOutput(next_token_logits=mixed @ self.out)

    def _bind(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, mixed: torch.Tensor
    ) -> launches.Launch:
        return self.exchange.prepare(hidden, ids, weights, self.experts, mixed)


class Setting:
    """One rank with the hooks applied, an exchange that SGLang's layers use, and SGLang's NPU graph backend."""

    def __init__(self, place: Place, exchange: Exchange, patch: pytest.MonkeyPatch) -> None:
        self.npu, self.exchange, self.patch = place.npu, exchange, patch
        self.models = {batch: Model(exchange, batch) for batch in (2, MOST)}
        self.runner = self._runner()
        self.backend = self.runner.backend

    def _runner(self) -> Any:
        """SGLang's NPU graph runner, without the model, the buffers and the streams of a server."""
        from sglang.srt.hardware_backend.npu.graph_runner.npu_cudagraph_backend import NPUCudaGraphBackend
        from sglang.srt.hardware_backend.npu.graph_runner.npu_graph_runner import NPUGraphRunner
        from sglang.srt.model_executor.runner import decode_cuda_graph_runner as module

        models = self.models

        class Runner(NPUGraphRunner):
            def __init__(self) -> None:
                """SGLang's own builds buffers for a model."""

            def warmup(self) -> None:
                self.warmed_at = self.exchange.epoch

            def load_batch(self, forward_batch: Any, _pp_proxy_tensors: Any = None) -> None:
                self.raw_bs = self.raw_num_token = forward_batch.batch_size
                self.bs = min(batch for batch in self.capture_bs if batch >= self.raw_bs)
                models[self.bs].x[: self.raw_bs].copy_(forward_batch.input_ids)

            def _capture_one_stream(self, _stream_idx: int | None = None) -> None:
                for batch in reversed(self.capture_bs):
                    self.backend.capture_one(self._make_graph_key(batch), models[batch].step)

        runner = Runner()
        runner.exchange = self.exchange
        runner.device, runner.device_module, runner.capture_bs = "cpu", self.npu, list(self.models)
        runner.enable_torch_compile = runner.enable_profile_cuda_graph = runner.enable_pdmux = runner.is_dllm = False
        runner.seq_len_fill_value = 0
        runner.buffers = SimpleNamespace(
            seq_lens=torch.zeros(MOST), seq_lens_cpu=torch.zeros(MOST), reset_index_buffers=lambda: None
        )
        runner.if_use_v2 = runner.use_fias_v2_bsnd = False
        config = SimpleNamespace(hf_config=SimpleNamespace(architectures=["AnyMoeForCausalLM"]))
        runner.model_runner = SimpleNamespace(model_config=config)
        runner._init_arch_map()
        graph_settings = SimpleNamespace(graph=SimpleNamespace(enable_cudagraph_gc=True))
        self.patch.setattr(module, "get_exec", lambda: graph_settings)
        self.patch.setattr(module, "graph_capture", lambda stream: nullcontext(SimpleNamespace(stream=stream)))
        self.patch.setattr(module, "get_or_create_global_graph_capture_stream", self.npu.Stream)
        runner.backend = NPUCudaGraphBackend(runner)
        return runner

    def prepare(self) -> None:
        """What our hook does in front of SGLang's `_capture`."""
        npu_runner.prepare_capture(self.runner)

    def key(self, batch: int) -> Any:
        return self.runner._make_graph_key(batch)

    def replay(self, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """SGLang's own replay of a batch, padded to its bucket. x [requests, hidden]."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        batch = SimpleNamespace(
            batch_size=len(x), input_ids=x, forward_mode=ForwardMode.DECODE, seq_lens_cpu=torch.tensor(lengths),
            needs_forward_metadata_init=lambda: True,
        )  # fmt: skip
        return self.runner.execute(batch).next_token_logits

    def eager(self, x: torch.Tensor, lengths: list[int], bucket: int) -> torch.Tensor:
        """The same batch without a graph, padded as SGLang's replay pads it."""
        model = Model(self.exchange, bucket)
        model.experts = self.models[bucket].experts
        model.x[: len(x)] = x
        model.lengths = [*lengths, *[0] * (bucket - len(x))]
        return model.step().next_token_logits[: len(x)]


class Place(NamedTuple):
    """A rank in a process in which SGLang's hooks for NPUs are applied."""

    rank: Rank
    npu: Any
    group: Any

    @contextmanager
    def setting(self) -> Iterator[Setting]:
        """An exchange of its own, and what SGLang captures with."""
        with pytest.MonkeyPatch.context() as patch, Exchange.create(self.rank.group, **OPTIONS) as exchange:
            patch.setattr(layer, "_serving", SimpleNamespace(exchanges={"the only shape": exchange}, secret=None))
            yield Setting(self, exchange, patch)


@contextmanager
def on_ascend(rank: Rank) -> Iterator[Place]:
    """SGLang as on a machine with NPUs, as far as hooks and graph backend look. The hooks stay in the process."""
    from sglang.srt import platforms
    from sglang.srt.distributed import parallel_state
    from sglang.srt.platforms.npu import NPUSRTPlatform
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.runtime_context import get_parallel

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(platforms, "_current_platform", NPUSRTPlatform())
        table = [hook for hook in plugin.TABLE if hook.where is Where.NPU and hooks.needed_in(hook)]
        hooks.install(table)
        HookRegistry.apply_hooks()
        if [found.state for found in hooks.states()] != [State.APPLIED] * len(table) or not table:
            raise AssertionError(hooks.states())
        npu = stack.enter_context(npu_stand_in.in_place_of_torch_npu())
        parallel_state.init_distributed_environment(
            world_size=rank.size, rank=rank.rank, distributed_init_method="env://", local_rank=0, backend="gloo"
        )
        group = parallel_state.init_model_parallel_group(
            [list(range(rank.size))], 0, "gloo", use_pynccl=False, use_custom_allreduce=False
        )
        stack.enter_context(get_parallel().override(tp_group=group, pp_size=1))
        yield Place(rank, npu, group)


@contextmanager
def ascend_setting(rank: Rank) -> Iterator[Setting]:
    """`on_ascend` with one setting."""
    with on_ascend(rank) as place, place.setting() as setting:
        yield setting
