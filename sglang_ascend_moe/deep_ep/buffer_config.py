"""DeepEP's `Config`, and how large windows are for it."""

# DeepEP's arguments that have no effect here.
# ruff: noqa: ARG002

from __future__ import annotations

import msgspec

from sglang_ascend_moe.errors import InvalidInput, WindowTooSmall
from sglang_ascend_moe.windows.layout import HIDDEN_MULTIPLE, ExchangeParameters, bytes_for_capacity, plan_window

_MOST_ROUND_TOKENS = 16384
_ELEMENT_BYTES = 2
LOW_LATENCY_SLOTS = 2
"""Handles of low-latency dispatches that are alive at the same time, as in DeepEP."""


class Config(msgspec.Struct, frozen=True):
    """DeepEP's tuning of normal mode. Only its size hints have an effect here: they say how much one round moves."""

    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes of a rank's window in which every rank brings half of num_sms times num_max_nvl_chunked_recv_tokens
        tokens of `hidden_bytes` to each round; more tokens take more rounds."""
        tokens = max(1, self.num_sms // 2) * self.num_max_nvl_chunked_recv_tokens
        return plan_window(normal_parameters(num_ranks, hidden_bytes // _ELEMENT_BYTES, tokens)).total_bytes

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """0: normal mode uses the window of `num_nvl_bytes` alone."""
        return 0


def normal_parameters(ranks: int, hidden: int, round_tokens: int) -> ExchangeParameters:
    """The exchange of normal mode: a token goes once to each rank that holds one of its experts, so that the ranks are
    what an exchange calls experts."""
    return ExchangeParameters(
        ranks=ranks, num_experts=ranks, hidden=hidden, max_tokens=round_tokens, topk=ranks, distinct_topk=True
    )


def normal_parameters_within(ranks: int, hidden: int, window_bytes: int) -> ExchangeParameters:
    """The exchange of normal mode with as many tokens per round as a window of `num_nvl_bytes` holds."""
    if hidden < HIDDEN_MULTIPLE or hidden % HIDDEN_MULTIPLE:
        raise InvalidInput(f"hidden={hidden} is not a positive multiple of {HIDDEN_MULTIPLE}")
    one = normal_parameters(ranks, hidden, 1)
    least = bytes_for_capacity(one, ranks)
    if window_bytes < least:
        raise WindowTooSmall(
            f"num_nvl_bytes={window_bytes} cannot hold one token of {hidden} elements of each of {ranks} ranks; "
            f"at least num_nvl_bytes={least} is needed, Config.get_nvl_buffer_size_hint recommends"
        )
    token_bytes = ranks * (one.row_bytes + one.out_row_bytes)
    tokens = min(_MOST_ROUND_TOKENS, window_bytes // token_bytes)
    while tokens > 1 and bytes_for_capacity(one, ranks * tokens) > window_bytes:
        tokens -= 1
    return normal_parameters(ranks, hidden, tokens)


def low_latency_parameters(ranks: int, hidden: int, max_tokens: int, num_experts: int, topk: int) -> ExchangeParameters:
    """The exchange of low-latency mode. How many bytes it needs does not depend on `topk`."""
    return ExchangeParameters(
        ranks=ranks, num_experts=num_experts, hidden=hidden, max_tokens=max_tokens, topk=topk, distinct_topk=True,
        slots=LOW_LATENCY_SLOTS, layout="padded",
    )  # fmt: skip
