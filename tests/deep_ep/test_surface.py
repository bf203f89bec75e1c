"""What surrounds the calls: sizes, layouts, events, and everything that is refused."""

from __future__ import annotations

import inspect
import os
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe import deep_ep
from sglang_ascend_moe.deep_ep import Buffer, Config, EventHandle, EventOverlap
from sglang_ascend_moe.deep_ep.fp8 import exponents, quantise
from sglang_ascend_moe.deep_ep.rank_routing import dispatch_layout
from sglang_ascend_moe.errors import (  # fmt: skip
    InvalidInput,
    ProtocolMismatch,
    SessionPoisoned,
    Unsupported,
    WindowTooSmall,
)
from tests.exchange.pool import Rank

RANKS = 2
HIDDEN, TOKENS, TOPK = 512, 4, 2
EXPERTS = 3 * RANKS

# DeepEP's own signatures, names in order.
SIGNATURES = {
    "dispatch": "x handle num_tokens_per_rank num_tokens_per_rdma_rank is_token_in_rank num_tokens_per_expert "
    "topk_idx topk_weights expert_alignment num_worst_tokens config previous_event async_finish "
    "allocate_on_comm_stream",
    "combine": "x handle topk_weights bias config previous_event async_finish allocate_on_comm_stream",
    "get_dispatch_layout": "topk_idx num_experts previous_event async_finish allocate_on_comm_stream",
    "low_latency_dispatch": "x topk_idx num_max_dispatch_tokens_per_rank num_experts "
    "cumulative_local_expert_recv_stats dispatch_wait_recv_cost_stats use_fp8 round_scale use_ue8m0 async_finish "
    "return_recv_hook",
    "low_latency_combine": "x topk_idx topk_weights handle use_logfmt zero_copy async_finish return_recv_hook out "
    "combine_wait_recv_cost_stats",
    "clean_low_latency_buffer": "num_max_dispatch_tokens_per_rank hidden num_experts",
    "get_low_latency_rdma_size_hint": "num_max_dispatch_tokens_per_rank hidden num_ranks num_experts",
}


@pytest.mark.parametrize("call", SIGNATURES)
def test_arguments_have_deep_ep_names_and_order(call):
    names = list(inspect.signature(getattr(Buffer, call)).parameters)
    assert [name for name in names if name != "self"] == SIGNATURES[call].split()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_layout_counts_each_token_once_for_a_rank(ranks, local, tokens, topk, random):
    experts = ranks * local
    ids = torch.tensor([[random.randint(-1, experts - 1) for _ in range(topk)] for _ in range(tokens)]).view(-1, topk)
    layout = dispatch_layout(ids.long(), ranks, experts)
    goes = [
        [any(expert >= 0 and expert // local == rank for expert in row) for rank in range(ranks)]
        for row in ids.tolist()
    ]
    assert layout.in_rank.tolist() == goes
    assert layout.tokens_per_rank.tolist() == [sum(row[rank] for row in goes) for rank in range(ranks)]
    assert layout.tokens_per_expert.tolist() == [int((ids == expert).sum()) for expert in range(experts)]
    assert (layout.tokens_per_rank.dtype, layout.tokens_per_expert.dtype) == (torch.int32, torch.int32)


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_a_rounded_scale_is_the_least_power_of_two_that_covers_a_block(magnitude):
    _, scales = quantise(torch.full((1, 128), magnitude), round_scale=True)
    least = max(torch.tensor(magnitude), torch.tensor(1e-4)) * (1 / 448)
    scale = scales[0, 0]
    assert float(scale).hex().startswith("0x1.0000000000000p")
    assert scale / 2 < least <= scale


def test_scales_of_ue8m0_are_four_exponents_in_a_word():
    words = exponents(torch.tensor([[1.0, 2.0, 0.5, 4.0]]))
    assert words.view(torch.uint8).tolist() == [[127, 128, 126, 129]]


def test_events_have_happened():
    event = Buffer.capture()
    with event as entered:
        assert entered is event
    called = []
    event.register_hook_after_wait(lambda: called.append(1))
    with pytest.raises(InvalidInput, match="hook already"):
        event.register_hook_after_wait(lambda: None)
    event.current_stream_wait()
    event.current_stream_wait(release_handle=True)
    assert called == [1]
    with pytest.raises(InvalidInput, match="no event"):
        event.current_stream_wait()
    with EventOverlap(EventHandle())(release_handle=True) as released:
        pass
    assert released.event is None


def test_static_methods():
    assert Buffer.is_sm90_compiled()
    assert deep_ep.topk_idx_t is torch.int64
    before = Buffer.num_sms
    try:
        Buffer.set_num_sms(24)
        assert Buffer.get_dispatch_config(3).num_sms == Buffer.get_combine_config(8).num_sms == 24
        with pytest.raises(InvalidInput, match="num_sms=7"):
            Buffer.set_num_sms(7)
    finally:
        Buffer.set_num_sms(before)
    assert Config(20, 6, 256).get_rdma_buffer_size_hint(14336, 8) == 0


def open_both(rank: Rank, **options: object) -> Buffer:
    sizes = {
        "num_nvl_bytes": Config(2, 6, 16).get_nvl_buffer_size_hint(2 * HIDDEN, rank.size),
        "num_rdma_bytes": Buffer.get_low_latency_rdma_size_hint(TOKENS, HIDDEN, rank.size, EXPERTS),
    }
    return Buffer(rank.group, **{**sizes, "low_latency_mode": True, "explicitly_destroy": True, **options})


def tokens_of(rank: Rank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank.rank)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).to(torch.bfloat16)
    ids = torch.rand(TOKENS, EXPERTS, generator=generator).argsort(1)[:, :TOPK]
    return x, ids, torch.rand(TOKENS, TOPK, generator=generator)


REFUSED_AT_CONSTRUCTION = {
    "comm": ({"comm": object()}, Unsupported, "comm"),
    "no-group": ({"group": None}, InvalidInput, "group"),
}


def construct_refused(rank: Rank, name: str) -> None:
    options, error, named = REFUSED_AT_CONSTRUCTION[name]
    with pytest.raises(error, match=named):
        Buffer(**{"group": rank.group, **options})


@pytest.mark.parametrize("name", REFUSED_AT_CONSTRUCTION)
def test_constructor_refuses_by_name(pools, name):
    pools.run(RANKS, construct_refused, name)


def construct_differently(rank: Rank) -> None:
    with pytest.raises(ProtocolMismatch, match=r"num_nvl_bytes.* 10000 on rank 0.* 10001 on rank 1"):
        Buffer(rank.group, 10_000 + rank.rank)


def test_sizes_that_differ_between_ranks_are_a_mismatch(pools):
    pools.run(RANKS, construct_differently)


def call_wrongly(rank: Rank) -> None:
    """Every call is refused on every rank before anything moves; afterwards the Buffer works."""
    x, ids, weights = tokens_of(rank)
    buffer = open_both(rank)
    rows, _, handle, _, hook = buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS, use_fp8=False)
    assert hook is None
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, EXPERTS)
    layout = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}
    topk = {"topk_idx": ids, "topk_weights": weights}
    received, *_, normal, _ = buffer.dispatch(x, **layout)

    def low_latency(**options: object) -> None:
        buffer.low_latency_dispatch(**{
            "x": x, "topk_idx": ids, "num_max_dispatch_tokens_per_rank": TOKENS, "num_experts": EXPERTS,
            "use_fp8": False, **options})  # fmt: skip

    def combine(**options: object) -> None:
        buffer.low_latency_combine(
            **{"x": rows.clone(), "topk_idx": ids, "topk_weights": weights, "handle": handle, **options}
        )

    refused = [
        (InvalidInput, "x is", lambda: low_latency(x=x.float())),
        (InvalidInput, "topk_idx is", lambda: low_latency(topk_idx=ids[1:])),
        (InvalidInput, "repeated", lambda: low_latency(topk_idx=ids[:, :1].expand(-1, 2))),
        (InvalidInput, "expert id 6", lambda: low_latency(topk_idx=ids.masked_fill(ids == ids[0, 0], EXPERTS))),
        (InvalidInput, "cumulative_local_expert", lambda: low_latency(cumulative_local_expert_recv_stats=ids[0])),
        (InvalidInput, "wait statistics", lambda: low_latency(dispatch_wait_recv_cost_stats=weights[0])),
        (InvalidInput, "need use_fp8", lambda: low_latency(round_scale=True)),
        (InvalidInput, "needs round_scale", lambda: low_latency(use_fp8=True, use_ue8m0=True)),
        (InvalidInput, "exclude", lambda: low_latency(async_finish=True, return_recv_hook=True)),
        (WindowTooSmall, "num_rdma_bytes=", lambda: low_latency(num_max_dispatch_tokens_per_rank=2 * TOKENS)),
        (WindowTooSmall, "num_rdma_bytes=", lambda: buffer.clean_low_latency_buffer(8 * TOKENS, HIDDEN, EXPERTS)),
        (InvalidInput, "handle", lambda: combine(handle=normal)),
        (InvalidInput, "x is", lambda: combine(x=rows[:, 1:])),
        (InvalidInput, "topk_idx is", lambda: combine(topk_idx=ids[1:])),
        (InvalidInput, "names other experts", lambda: combine(topk_idx=(ids + 1) % EXPERTS)),
        (InvalidInput, "out is", lambda: combine(out=torch.empty(TOKENS, HIDDEN))),
        (InvalidInput, "exclude", lambda: combine(async_finish=True, return_recv_hook=True)),
        (InvalidInput, "x is", lambda: buffer.dispatch(x.float(), **layout)),
        (InvalidInput, "scales of x", lambda: buffer.dispatch((quantise(x)[0], weights), **layout)),
        (InvalidInput, "needs num_tokens_per_rank", lambda: buffer.dispatch(x)),
        (InvalidInput, "expert_alignment=0", lambda: buffer.dispatch(x, **layout, expert_alignment=0)),
        (InvalidInput, "num_worst_tokens=1", lambda: buffer.dispatch(x, **layout, num_worst_tokens=1)),
        (Unsupported, "num_tokens_per_rdma", lambda: buffer.dispatch(x, **layout, num_tokens_per_rdma_rank=per_rank)),
        (InvalidInput, "come together", lambda: buffer.dispatch(x, **layout, topk_idx=ids)),
        (InvalidInput, "is not what topk_idx", lambda: buffer.dispatch(
            x, **{**layout, "is_token_in_rank": in_rank.flip(1), "num_tokens_per_rank": per_rank.flip(0)},
            topk_idx=torch.zeros_like(ids), topk_weights=weights)),
        (InvalidInput, "does not count what is_t", lambda: buffer.dispatch(
            x, **{**layout, "num_tokens_per_rank": per_rank + 1}, **topk)),
        (InvalidInput, "does not count what topk", lambda: buffer.dispatch(
            x, **{**layout, "num_tokens_per_expert": per_expert + 1}, **topk)),
        (InvalidInput, "cannot be given with handle", lambda: buffer.dispatch(x, handle=normal, **topk)),
        (InvalidInput, "cannot be given with handle", lambda: buffer.dispatch(x, handle=normal, num_worst_tokens=9)),
        (InvalidInput, "x has 3 tokens", lambda: buffer.dispatch(x[1:], handle=normal)),
        (InvalidInput, "handle is", lambda: buffer.combine(x, handle)),
        (InvalidInput, "x has 0 rows", lambda: buffer.combine(received[:0], normal)),
        (InvalidInput, "bias is", lambda: buffer.combine(received, normal, bias=weights)),
        (InvalidInput, "topk_weights is", lambda: buffer.combine(received, normal, topk_weights=ids)),
        (Unsupported, "get_local_buffer_tensor", lambda: buffer.get_local_buffer_tensor(torch.bfloat16)),
        (InvalidInput, "outside -1", lambda: buffer.get_dispatch_layout(ids + EXPERTS, EXPERTS)),
        (InvalidInput, "mask_status", lambda: buffer.low_latency_query_mask_buffer(torch.zeros(RANKS))),
        (Unsupported, "mask=True", lambda: buffer.low_latency_update_mask_buffer(1, True)),
        (InvalidInput, "rank_to_mask=2", lambda: buffer.low_latency_update_mask_buffer(2, True)),
    ]  # fmt: skip
    for error, named, call in refused:
        with pytest.raises(error, match=named):
            call()
    combined = buffer.low_latency_combine(rows.clone(), ids, weights, handle)[0]
    assert combined.isfinite().all()
    buffer.low_latency_update_mask_buffer(1, False)
    buffer.low_latency_clean_mask_buffer()
    buffer.clean_low_latency_buffer(TOKENS, HIDDEN, EXPERTS)
    buffer.destroy()
    for call in (lambda: low_latency(), lambda: buffer.dispatch(x, **layout), lambda: buffer.combine(x, normal)):
        with pytest.raises(SessionPoisoned, match="destroyed"):
            call()


def test_calls_are_refused_by_name_and_the_buffer_goes_on(pools):
    pools.run(RANKS, call_wrongly)


def forget_hooks(rank: Rank) -> None:
    x, ids, weights = tokens_of(rank)
    buffer = open_both(rank)

    def dispatch() -> tuple:
        return buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS, use_fp8=False, return_recv_hook=True)

    first, second = dispatch(), dispatch()
    with pytest.raises(InvalidInput, match="hook of the dispatch"):
        dispatch()
    with pytest.raises(InvalidInput, match="hook of its dispatch"):
        buffer.low_latency_combine(first[0], ids, weights, first[2])
    for done in (first, second):
        done[4]()
        done[4]()
    *_, receive = buffer.low_latency_combine(first[0].clone(), ids, weights, first[2], return_recv_hook=True)
    with pytest.raises(InvalidInput, match="hook of a combine"):
        dispatch()
    with pytest.raises(InvalidInput, match="hook of the combine"):
        buffer.get_next_low_latency_combine_buffer(first[2])
    receive()
    third = dispatch()
    third[4]()
    with pytest.raises(InvalidInput, match="are gone"):
        buffer.low_latency_combine(first[0], ids, weights, first[2])
    buffer.low_latency_combine(second[0].clone(), ids, weights, second[2])
    buffer.destroy()


def test_a_hook_that_was_not_called_is_refused_before_its_rows_are_overwritten(pools):
    pools.run(RANKS, forget_hooks)


def differ_in_format(rank: Rank) -> None:
    x, ids, weights = tokens_of(rank)
    buffer = open_both(rank)
    with pytest.raises(ProtocolMismatch, match=f"use_fp8={rank.rank == 0} here"):
        buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS, use_fp8=rank.rank == 0)
    rows, _, handle, _, _ = buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS, use_fp8=False)
    buffer.low_latency_combine(rows.clone(), ids, weights, handle)
    buffer.destroy()


def test_ranks_that_send_rows_of_different_formats_are_a_mismatch(pools):
    pools.run(RANKS, differ_in_format)


def refuse_on_one_rank(rank: Rank) -> None:
    x, ids, _ = tokens_of(rank)
    buffer = open_both(rank)
    wrong = rank.rank == 1
    for use_fp8 in (False, True):
        with pytest.raises(InvalidInput, match=r"x is .*float32" if wrong else r"rank 1.*x is"):
            buffer.low_latency_dispatch(x.float() if wrong else x, ids, TOKENS, EXPERTS, use_fp8=use_fp8)
        with pytest.raises(InvalidInput, match="outside -1"):
            buffer.low_latency_dispatch(x, ids + EXPERTS if wrong else ids, TOKENS, EXPERTS, use_fp8=use_fp8)
        buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS, use_fp8=use_fp8)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, EXPERTS)
    with pytest.raises(InvalidInput, match="does not count" if wrong else "rank 1 refuses"):
        buffer.dispatch(x, None, per_rank + wrong, None, in_rank, per_expert)
    with pytest.raises(InvalidInput, match="num_worst_tokens=1 of rank 1"):
        buffer.dispatch(x, None, per_rank, None, in_rank, per_expert, num_worst_tokens=int(wrong))
    buffer.dispatch(x, None, per_rank, None, in_rank, per_expert)
    buffer.destroy()


def test_what_one_rank_does_wrong_is_raised_on_all(pools):
    pools.run(RANKS, refuse_on_one_rank)


def need_modes(rank: Rank) -> None:
    x, ids, _ = tokens_of(rank)
    buffer = Buffer(rank.group, 0, 0)
    with pytest.raises(InvalidInput, match="low_latency_mode=True"):
        buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS)
    with pytest.raises(InvalidInput, match="explicitly_destroy=True"):
        buffer.destroy()
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, EXPERTS)
    with pytest.raises(WindowTooSmall, match="num_nvl_bytes=0"):
        buffer.dispatch(x, None, per_rank, None, in_rank, per_expert)


def test_a_mode_that_was_not_asked_for_is_refused(pools):
    pools.run(RANKS, need_modes)


def change_shapes(rank: Rank) -> list[bool]:
    """The windows follow the shapes of calls; handles of the windows before are refused."""
    buffer = open_both(rank)
    x, ids, weights = tokens_of(rank)
    equal, before = [], None
    for hidden, topk in ((HIDDEN, 2), (256, 1), (HIDDEN, 2)):
        rows, _, handle, _, _ = buffer.low_latency_dispatch(
            x[:, :hidden].contiguous(), ids[:, :topk], TOKENS, EXPERTS, use_fp8=False
        )
        with pytest.raises(InvalidInput, match="opened anew") if before else nullcontext():
            if before:
                buffer.low_latency_combine(rows.clone(), ids[:, :topk], weights[:, :topk], before)
        ones = torch.ones(TOKENS, topk)
        combined = buffer.low_latency_combine(rows.clone(), ids[:, :topk], ones, handle)[0]
        equal.append(torch.equal(combined, (x[:, :hidden].float() * topk).to(torch.bfloat16)))
        before = handle
    buffer.destroy()
    return equal


def test_windows_follow_the_shapes_of_calls(pools):
    assert pools.run(RANKS, change_shapes) == [[True] * 3] * RANKS


def count_waits(rank: Rank) -> list[int]:
    x, ids, weights = tokens_of(rank)
    buffer = open_both(rank)
    waits = torch.full((RANKS, RANKS), 5, dtype=torch.int64)
    _, _, handle, _, _ = buffer.low_latency_dispatch(x, ids, TOKENS, EXPERTS, dispatch_wait_recv_cost_stats=waits)
    results = buffer.get_next_low_latency_combine_buffer(handle).zero_()
    buffer.low_latency_combine(
        results, ids, weights, handle, zero_copy=True, combine_wait_recv_cost_stats=waits[rank.rank]
    )
    buffer.destroy()
    assert (waits >= 5).all()
    return waits[1 - rank.rank].tolist()


def test_waits_are_added_to_the_own_line(pools):
    assert pools.run(RANKS, count_waits) == [[5, 5], [5, 5]]


def leave_a_buffer_in_a_forked_process(rank: Rank) -> None:
    size = Buffer.get_low_latency_rdma_size_hint(TOKENS, HIDDEN, RANKS, EXPERTS)
    buffers = [Buffer(rank.group, 0, size, low_latency_mode=True)]
    x, ids = torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16), torch.arange(TOKENS * TOPK).view(TOKENS, TOPK) % EXPERTS

    def dispatch() -> None:
        buffers[0].low_latency_dispatch(x, ids, TOKENS, EXPERTS, use_fp8=False)

    dispatch()
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(SessionPoisoned, match="fork"):
                dispatch()
            buffers.clear()  # the last use of it here
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    dispatch()


def test_a_forked_process_cannot_use_or_end_the_buffer_of_its_parent(pools):
    pools.run(RANKS, leave_a_buffer_in_a_forked_process)
