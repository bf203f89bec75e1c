"""The MoE layer gives bit for bit what SGLang's own layer gives for the same rows."""

import argparse
import functools
from collections import Counter

import pytest
import torch
from sglang.srt.layers.moe import fused_moe_native
from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import SessionPoisoned
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.tape import record
from sglang_ascend_moe.launch.trace.timeline import read_timelines
from sglang_ascend_moe.native.codes import Step
from sglang_ascend_moe.serving.options import Options, attach
from sglang_ascend_moe.serving.worker import host_experts, layer
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits

EXPERTS, HIDDEN, EXPERT_HIDDEN, TOPK, TOKENS = 8, 64, 48, 3, 40


def moe_layer(dtype: torch.dtype, activation: str, *, biases: bool = False, **limits: float) -> argparse.Namespace:
    """What the override reads of SGLang's FusedMoE."""
    generator = torch.Generator().manual_seed(1)
    config = argparse.Namespace(
        activation=activation, apply_router_weight_on_input=False, is_gated=True, gate_up_interleaved=True,
        gemm1_alpha=None, gemm1_clamp_limit=None, swiglu_limit=None,
    )  # fmt: skip
    vars(config).update(limits)
    made = argparse.Namespace(
        is_draft=False,
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        top_k=TOPK,
        moe_runner_config=config,
        w13_weight=(torch.randn(EXPERTS, 2 * EXPERT_HIDDEN, HIDDEN, generator=generator) * HIDDEN**-0.5).to(dtype),
        w2_weight=(torch.randn(EXPERTS, HIDDEN, EXPERT_HIDDEN, generator=generator) * EXPERT_HIDDEN**-0.5).to(dtype),
    )
    if biases:
        made.w13_weight_bias = torch.randn(EXPERTS, 2 * EXPERT_HIDDEN, generator=generator)
        made.w2_weight_bias = torch.randn(EXPERTS, HIDDEN, generator=generator)
    return made


@pytest.fixture
def serve(group, monkeypatch: pytest.MonkeyPatch):
    """Opens an exchange for a layer as a worker does, with a window that a prefill needs several rounds for."""
    opened = []

    def open_exchange(moe, options: Options) -> None:
        shape = layer.shape_of(moe)
        exchange = Exchange.create(
            group,
            max_tokens=TOKENS,
            distinct_topk=True,
            window_bytes=options.window_bytes,
            quant=None if options.quant == "none" else options.quant,
            **shape._asdict(),
        )
        opened.append(exchange)
        serving = layer.Serving(options, {shape: exchange}, rank=0, ranks=1, metrics=False, decode_tokens=0)
        monkeypatch.setattr(layer, "_serving", serving)

    yield open_exchange
    for exchange in opened:
        exchange.close()


def routed(tokens: int) -> argparse.Namespace:
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(tokens, EXPERTS, generator=generator)
    weights, ids = scores.topk(TOPK)
    return argparse.Namespace(topk_ids=ids, topk_weights=weights / weights.sum(-1, keepdim=True))


def sglang_output(moe, x: torch.Tensor, topk: argparse.Namespace) -> torch.Tensor:
    """What SGLang's layer computes with the rows of each expert in the order of their tokens.

    Its sort leaves their order open, and on some processors the bits of a product depend on a row's place in it.
    """
    from sglang.srt.layers.moe.fused_moe_native import moe_forward_native

    in_order = functools.partialmethod(torch.Tensor.argsort, stable=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "argsort", in_order)
        return moe_forward_native(moe, x, (topk.topk_weights, topk.topk_ids, None), moe.moe_runner_config)


def never(*_: object) -> torch.Tensor:
    raise AssertionError("SGLang's own layer was called")


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("schedule", ["decode", "prefill"])
@pytest.mark.parametrize("tokens", [1, TOKENS // 2, TOKENS])
def test_one_rank_computes_what_sglang_computes(
    serve, monkeypatch, tokens: int, schedule: str, dtype: torch.dtype, activation: str
):
    # Too few for the rows of all tokens.
    monkeypatch.setattr(host_experts, "ROWS_TOGETHER", TOKENS * TOPK - 1)
    moe = moe_layer(dtype, activation)
    serve(moe, Options(schedule=schedule))
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = layer.forward(never, moe, x, routed(tokens))
    assert torch.equal(found, sglang_output(moe, x, routed(tokens)))


@pytest.mark.parametrize("together", [True, False], ids=["together", "one-by-one"])
@pytest.mark.parametrize(
    ("activation", "limits"),
    [
        ("silu", {}),
        ("silu", {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 0.5}),
        ("situ", {"gemm1_alpha": 2.0, "gemm1_clamp_limit": 0.5}),
        ("situ", {}),
    ],
    ids=["silu", "gpt-oss", "situ", "situ-without-limits"],
)
def test_biases_and_limits_are_those_of_sglang(serve, monkeypatch, activation: str, limits: dict[str, float], together):
    monkeypatch.setattr(host_experts, "ROWS_TOGETHER", TOKENS * TOPK if together else 0)
    # As its function says, without what a compiler makes of it.
    eager = fused_moe.swiglu_gpt_oss_sigmoid_alpha._torchdynamo_orig_callable
    monkeypatch.setattr(fused_moe_native, "swiglu_gpt_oss_sigmoid_alpha", eager)
    moe = moe_layer(torch.float32, activation, biases=True, **limits)
    serve(moe, Options(schedule="decode"))
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3))
    found, expected = layer.forward(never, moe, x, routed(TOKENS)), sglang_output(moe, x, routed(TOKENS))
    if together:
        # The last bit of a sigmoid depends on how many numbers are computed at once.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, expected)


def test_rounds_of_a_small_window_compute_the_same_experts(serve):
    moe = moe_layer(torch.float32, "silu")
    shape = layer.shape_of(moe)
    window = Exchange.memory(ranks=1, max_tokens=8, distinct_topk=True, **shape._asdict()).total
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3))
    serve(moe, Options(schedule="prefill", window_bytes=window))
    found = layer.forward(never, moe, x, routed(TOKENS))
    # Fewer rows per product: another kernel may sum in another order.
    torch.testing.assert_close(found, sglang_output(moe, x, routed(TOKENS)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_int8_rows_are_computed_as_the_row_that_the_scale_gives(serve, dtype: torch.dtype):
    moe = moe_layer(dtype, "silu")
    serve(moe, Options(schedule="decode", quant="int8"))
    # Whole numbers up to 127 with a power of two as scale: quantisation loses nothing, in no dtype.
    x = torch.randint(-127, 128, (TOKENS, HIDDEN), generator=torch.Generator().manual_seed(3)).to(dtype)
    x[:, 0] = 127
    x /= 64
    found = layer.forward(never, moe, x, routed(TOKENS))
    assert torch.equal(found, sglang_output(moe, x, routed(TOKENS)))


def test_int8_is_close_to_the_rows_that_were_sent(serve):
    moe = moe_layer(torch.float32, "silu")
    serve(moe, Options(schedule="decode", quant="int8"))
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3))
    found = layer.forward(never, moe, x, routed(TOKENS))
    expected = sglang_output(moe, x, routed(TOKENS))
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_rows_that_are_not_routed_give_zeros_whatever_they_hold(serve):
    moe = moe_layer(torch.bfloat16, "silu")
    serve(moe, Options(schedule="decode"))
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    topk = routed(TOKENS)
    kept = argparse.Namespace(topk_ids=topk.topk_ids[:-2].clone(), topk_weights=topk.topk_weights[:-2])
    x[-2:] = torch.nan
    topk.topk_ids[-2:] = -1
    found = layer.forward(never, moe, x, topk)
    assert torch.equal(found[:-2], sglang_output(moe, x[:-2], kept))
    assert torch.equal(found[-2:], torch.zeros(2, HIDDEN, dtype=torch.bfloat16))


class Touches(TorchDispatchMode):
    """Bytes of given tensors that each operator takes or returns; views, which touch none, are left out."""

    def __init__(self, **watched: torch.Tensor) -> None:
        super().__init__()
        self.watched = watched
        self.operators: set[str] = set()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators.add(str(func))
            operands = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
            for name, tensor in self.watched.items():
                end = tensor.data_ptr() + tensor.nbytes
                self.bytes[name, str(func)] += sum(
                    operand.nbytes for operand in operands if tensor.data_ptr() <= operand.data_ptr() < end
                )
        return result


def test_calls_and_replays_of_them_are_traced_with_their_layer(serve, monkeypatch, tmp_path):
    monkeypatch.setattr(layer, "_stage", lambda: None)
    monkeypatch.setattr(layer, "_replay_together", lambda: True)
    moe = moe_layer(torch.float32, "silu")
    moe.layer_id = 7
    serve(moe, Options(schedule="decode"))
    x, topk = torch.randn(TOKENS, HIDDEN), routed(TOKENS)
    layer.trace_into(tmp_path, layer.exchanges())
    layer.forward(never, moe, x, topk)
    tape = record(lambda: layer.forward(never, moe, x, topk), Arena())
    for _ in range(2):
        tape.replay()
    layer.trace_into(None, layer.exchanges())
    tape.replay()
    (timeline,) = read_timelines(tmp_path)
    experts = [span for span in timeline.spans[0] if span.step == Step.EXPERTS]
    assert [(span.layer, span.rows, span.has_ended) for span in experts] == [(7, TOKENS * TOPK, True)] * len(experts)
    assert len(experts) == 2 + 2


@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
def test_products_take_rows_out_of_the_window_and_put_results_into_it(serve, monkeypatch, together):
    monkeypatch.setattr(host_experts, "ROWS_TOGETHER", TOKENS * TOPK if together else 0)
    moe = moe_layer(torch.bfloat16, "silu")
    serve(moe, Options(schedule="decode"))
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    topk = routed(TOKENS)
    row_bytes = TOKENS * TOPK * HIDDEN * 2
    with layer._serving.exchanges[layer.shape_of(moe)] as exchange:
        rows = exchange.dispatch(x, topk.topk_ids, topk.topk_weights)
        with Touches(rows=rows.rows, results=rows.out) as touches:
            layer.compute_experts(layer._serving, moe, rows)
        exchange.combine(rows.out, rows)
    # Two products and an activation made of two operators: nothing copies, gathers or sorts.
    first = {"aten.new_empty.default", "aten.mm.out"} if together else {"aten.mm.default"}
    assert touches.operators == first | {"aten.mm.out", "aten.silu.default", "aten.mul.Tensor"}
    taken = "aten.mm.out" if together else "aten.mm.default"
    operands = +touches.bytes
    # The view of the window that a tensor is made like is no operand of a product.
    operands.pop(("rows", "aten.new_empty.default"), None)
    assert operands == {("rows", taken): row_bytes, ("results", "aten.mm.out"): row_bytes}


@pytest.mark.parametrize(("is_extend", "phase"), [(True, "prefill"), (False, "decode")], ids=["extend", "decode"])
def test_auto_takes_the_phase_that_the_ranks_agreed_on(monkeypatch: pytest.MonkeyPatch, is_extend: bool, phase: str):
    monkeypatch.setattr("sglang.srt.layers.dp_attention.get_is_extend_in_batch", lambda: is_extend)
    assert layer._phase(Options(schedule="auto")) == phase
    assert layer._phase(Options(schedule="collective")) == phase
    assert [layer._phase(Options(schedule=forced)) for forced in ("decode", "prefill")] == ["decode", "prefill"]


@pytest.mark.parametrize(
    ("tokens", "divided", "most"),
    [
        pytest.param(None, 1, None, id="no attention of its own"),
        pytest.param([3, 100], 1, 103, id="groups told of each other"),
        pytest.param([3, 100], 2, 206, id="each group of two context-parallel ranks"),
        pytest.param([3], 1, None, id="groups that know their own batch alone"),
        pytest.param([0], 1, None, id="an idle group of these"),
    ],
)
def test_what_all_ranks_bring_is_known_only_if_sglang_tells_them_of_each_other(monkeypatch, tokens, divided, most):
    from sglang.srt import runtime_context
    from sglang.srt.layers import dp_attention

    monkeypatch.setattr(dp_attention, "is_dp_attention_enabled", lambda: tokens is not None)
    monkeypatch.setattr(dp_attention, "get_dp_global_num_tokens", lambda: tokens)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: argparse.Namespace(attn_cp_size=divided))
    assert layer._tokens_of_all_ranks() == most


@pytest.mark.parametrize(
    ("attention", "gathers", "together"), [(False, False, True), (True, True, True), (True, False, False)]
)
def test_ranks_replay_graphs_of_one_size_unless_groups_choose_their_own(monkeypatch, attention, gathers, together):
    from sglang.srt import utils
    from sglang.srt.layers import dp_attention

    monkeypatch.setattr(dp_attention, "is_dp_attention_enabled", lambda: attention)
    monkeypatch.setattr(utils, "require_mlp_tp_gather", lambda: gathers)
    assert layer._replay_together() is together


@pytest.mark.parametrize(
    ("tokens", "together", "most"),
    [(2, True, 6), (8, True, 24), (2, False, 15), (8, False, 24)],
    ids=["one size", "one large size", "sizes of their own", "a size of its own beyond the scheduler's limit"],
)
def test_a_captured_layer_has_room_for_what_its_ranks_can_bring(monkeypatch, tokens: int, together: bool, most: int):
    promised = []

    def prepare(*_: object, most_tokens: int) -> launches.Launch:
        promised.append(most_tokens)
        return lambda: None

    moe = moe_layer(torch.bfloat16, "silu")
    exchange = argparse.Namespace(prepare=prepare)
    serving = layer.Serving(Options(), {layer.shape_of(moe): exchange}, rank=0, ranks=3, metrics=False, decode_tokens=5)
    monkeypatch.setattr(layer, "_serving", serving)
    monkeypatch.setattr(layer, "_phase", lambda _options: "decode")
    monkeypatch.setattr(layer, "_replay_together", lambda: together)
    with launches.capture():
        layer.forward(never, moe, torch.zeros(tokens, HIDDEN), routed(tokens))
    assert promised == [most]


@pytest.mark.parametrize(
    ("tokens", "told", "most"),
    [(2, 7, 7), (2, None, 15), (8, None, 24)],
    ids=["ranks told of each other", "not told", "not told, beyond the scheduler's limit"],
)
def test_a_call_nobody_waits_for_has_room_for_what_its_ranks_can_bring(monkeypatch, tokens: int, told, most: int):
    promised = []
    moe = moe_layer(torch.bfloat16, "silu")
    exchange = argparse.Namespace(run=lambda *_, most_tokens, **__: promised.append(most_tokens))
    serving = layer.Serving(Options(), {layer.shape_of(moe): exchange}, rank=0, ranks=3, metrics=False, decode_tokens=5)
    monkeypatch.setattr(layer, "_serving", serving)
    monkeypatch.setattr(layer, "_phase", lambda _options: "decode")
    monkeypatch.setattr(layer, "_tokens_of_all_ranks", lambda: told)
    layer.forward(never, moe, torch.zeros(tokens, HIDDEN), routed(tokens))
    assert promised == [most]


@pytest.mark.parametrize(
    ("schedule", "changed", "most"),
    [
        ("auto", {}, 6), ("auto", {"role": "prefill"}, 0), ("auto", {"micro_batches": 3}, 23), ("decode", {}, 64),
    ],
    ids=["auto", "a prefill instance", "stages", "the decode schedule for everything"],
)  # fmt: skip
def test_a_batch_of_the_decode_schedule_is_bounded_by_the_scheduler(schedule: str, changed: dict, most: int):
    limits = SchedulerLimits(4, 128, "--chunked-prefill-size", 2, request_tokens=3)._replace(**changed)
    assert layer._decode_tokens(Options(schedule=schedule), limits) == most


def test_profiles_of_exchanges_without_windows_trace_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(layer, "_traced", True)
    layer.trace_into(tmp_path, [argparse.Namespace()])
    assert not layer._traced
    assert not list(tmp_path.iterdir())


def test_without_the_flag_sglang_runs_its_own_layer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layer, "_serving", None)
    monkeypatch.setattr("sglang.srt.runtime_context.get_server_args", argparse.Namespace)
    x = torch.ones(1, HIDDEN)
    assert layer.forward(lambda _layer, rows, _topk: rows + 1, None, x, None).equal(x + 1)


def test_a_layer_that_runs_before_its_exchange_is_open_is_an_error(monkeypatch: pytest.MonkeyPatch):
    server_args = argparse.Namespace()
    attach(server_args, Options())
    monkeypatch.setattr(layer, "_serving", None)
    monkeypatch.setattr("sglang.srt.runtime_context.get_server_args", lambda: server_args)
    with pytest.raises(SessionPoisoned, match="before its exchange was opened"):
        layer.forward(never, None, torch.ones(1, HIDDEN), None)
