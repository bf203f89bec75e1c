"""How many tokens a rank can bring to an MoE layer, and how large windows are for them: pure arithmetic."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from sglang_ascend_moe.errors import InvalidInput, WindowTooSmall
from sglang_ascend_moe.serving.options import FLAGS, WINDOW_FACTOR, Options
from sglang_ascend_moe.windows.layout import ExchangeParameters, bytes_for_capacity, plan_window

DEFAULT_STEPS = 3
"""Of a draft: what SGLang chooses where no `--speculative-num-steps` is given, or more."""
DEVICE_PART = 8
"""For prefill alone, windows take at most one part in so many of a device's memory."""

# The values of `--disaggregation-mode`; null: an instance that does both.
Role = Literal["null", "prefill", "decode"]


class ContextParallel(NamedTuple):
    """Ranks that have the same heads of attention, and in prefill each a part of the tokens of a batch.

    strategy: of `--cp-strategy`; None: batches are not divided. zigzag: a part is an early and a late piece of each
    text, and no batch is divided that has a text shorter than all pieces. interleave: a part is every so many tokens.
    Source: SGLang's `layers/cp`.
    """

    ranks: int = 1
    strategy: str | None = None

    def tokens(self, batch: int) -> int:
        """Most tokens of a part of a batch of so many, with the padding that makes parts equally long."""
        if self.ranks == 1 or self.strategy is None:
            return batch
        multiple = 2 * self.ranks if self.strategy == "zigzag" else self.ranks
        return -(-batch // (self.ranks * multiple)) * multiple


class SchedulerLimits(NamedTuple):
    """The scheduler's limits for one attention group, whose `attention_ranks` ranks share every batch evenly.

    running_requests: most requests in a decode batch, one of `micro_batches` that are under way at a time.
    request_tokens: tokens that each of them brings to it, more than one where drafts are verified. prefill_tokens: most
    tokens in a prefill batch; `prefill_flag` is the flag that sets it. role: prefill instances never decode, decode
    instances never prefill. context: how prefill batches are divided besides.
    """

    running_requests: int
    prefill_tokens: int
    prefill_flag: str
    attention_ranks: int
    role: Role = "null"
    request_tokens: int = 1
    micro_batches: int = 1
    context: ContextParallel = ContextParallel()

    @property
    def decode_tokens(self) -> int:
        """Most tokens in a decode batch."""
        return self.running_requests * self.request_tokens

    @property
    def decode_tokens_per_rank(self) -> int:
        return 0 if self.role == "prefill" else -(-self.decode_tokens // self.attention_ranks)

    @property
    def decode_bound_per_rank(self) -> int:
        """Tokens that no decode batch brings more than to a rank. A micro batch of a pipeline's stages takes a request
        more than its part whose prompt came in chunks, and then another one, but never more than all that are under
        way."""
        if self.micro_batches == 1 or self.role == "prefill":
            return self.decode_tokens_per_rank
        requests = (self.running_requests + 1) * self.micro_batches
        return -(-requests * self.request_tokens // self.attention_ranks)

    @property
    def prefill_tokens_per_rank(self) -> int:
        if self.role == "decode":
            return 0
        divides = self.context.strategy == "interleave"
        most = self.context.tokens(self.prefill_tokens) if divides else self.prefill_tokens
        return -(-most // self.attention_ranks)

    @property
    def usual_tokens_per_rank(self) -> int:
        """Of the largest batches, of which those of prefill are divided as long texts are."""
        divided = 0 if self.role == "decode" else self.context.tokens(self.prefill_tokens)
        return max(self.decode_tokens_per_rank, -(-divided // self.attention_ranks))


def context_parallel(settings: Any) -> ContextParallel:
    """settings: by the names of SGLang's server arguments, resolved or as they were given."""
    return ContextParallel(settings.attn_cp_size, settings.cp_strategy if settings.enable_prefill_cp else None)


def tokens_of_request(settings: Any) -> int:
    """Most tokens that a request brings to a decode batch: those of its tree of drafts, if there is one.

    settings: by the names of SGLang's server arguments, resolved or as they were given. A draft model gets one token of
    each branch, and once more what has been verified.
    """
    if not settings.speculative_algorithm:
        return 1
    chain = 1 + (settings.speculative_num_steps or DEFAULT_STEPS)
    branches = settings.speculative_eagle_topk or 1
    return max(chain if branches == 1 else settings.speculative_num_draft_tokens or chain, branches)


def micro_batch(running: int, *, pp_size: int, asked: int | None, role: Role) -> int:
    """Most requests of a decode batch of one attention group, which has at most `running` requests under way.

    asked: `--pp-max-micro-batch-size`. The stages of a pipeline work on a part of the requests each, which
    `/set_internal_state` may make as large as it is if nothing is asked. A decode instance may put all into one.
    """
    if pp_size == 1 or role == "decode":
        return running
    return min(running, max(asked or 0, running // pp_size, 1))


def prefill_batch(chunked: int | None, most: int, context: int, *, dynamic: bool = False) -> tuple[int, str]:
    """Most tokens of a prefill batch of one attention group, and the flag that sets them.

    chunked, most: `--chunked-prefill-size` and `--max-prefill-tokens`. context: length of the longest request.
    dynamic: whether a pipeline chooses its chunks itself (`--enable-dynamic-chunking`).
    """
    if chunked is not None and chunked > 0:
        if dynamic and most > chunked:
            return most, "--max-prefill-tokens"
        return chunked, "--chunked-prefill-size"
    # Without chunks the first request of a batch may be longer than --max-prefill-tokens.
    return max(most, context), "--max-prefill-tokens"


def tokens_per_rank(options: Options, limits: SchedulerLimits) -> int:
    """The `max_tokens` of the exchange.

    Raises `InvalidInput` if `--ascend-moe-max-tokens` is below what the scheduler may put into one batch.
    """
    needed = max(limits.decode_tokens_per_rank, limits.prefill_tokens_per_rank)
    if options.max_tokens is None:
        return needed
    if options.max_tokens < needed:
        decode = limits.decode_tokens_per_rank >= limits.prefill_tokens_per_rank
        flag = "--max-running-requests" if decode else limits.prefill_flag
        batch = limits.decode_tokens if decode else limits.prefill_tokens
        fitting = options.max_tokens * limits.attention_ranks
        if decode:
            # A decode instance may put all requests into one batch.
            batches = 1 if limits.role == "decode" else limits.micro_batches
            fitting = fitting // limits.request_tokens * batches
        raise InvalidInput(
            f"{FLAGS['max_tokens'].flag} {options.max_tokens}: the largest {'decode' if decode else 'prefill'} batch of"
            f" {batch} tokens brings {needed} to each of {limits.attention_ranks} ranks. Raise it to {needed} or lower"
            f" {flag} to {fitting}"
        )
    return options.max_tokens


def check_window(options: Options, limits: SchedulerLimits, bytes_for: Callable[[int], int]) -> None:
    """Raise `WindowTooSmall` if `--ascend-moe-window-bytes` cannot hold the largest batch that must fit in one round.

    bytes_for: bytes of a window that holds one round of the given number of tokens from every rank.
    Prefill batches go in rounds, so they have to fit only where `--ascend-moe-schedule decode` carries them too.
    """
    if options.window_bytes is None or options.schedule == "collective":
        return
    everything = options.schedule == "decode"
    # Rounds of a prefill instance have to hold something, too.
    tokens = max(1, limits.decode_tokens_per_rank)
    if everything:
        tokens = max(tokens, limits.prefill_tokens_per_rank)
    needed = bytes_for(tokens)
    if needed > options.window_bytes:
        flags = f"--max-running-requests and {limits.prefill_flag}" if everything else "--max-running-requests"
        raise WindowTooSmall(
            f"{FLAGS['window_bytes'].flag} {options.window_bytes}: the largest {'' if everything else 'decode '}batch"
            f" brings {tokens} tokens per rank and needs {needed} bytes. Raise it to {needed} or lower {flags}"
            f" (now {limits.running_requests}" + (f" and {limits.prefill_tokens})" if everything else ")")
        )


def sized(
    parameters: ExchangeParameters, options: Options, limits: SchedulerLimits, device_bytes: int | None = None
) -> ExchangeParameters:
    """The same with `window_bytes` set, or None where one round of everything is to fit.

    Without `--ascend-moe-window-bytes` a window holds the largest decode batch whatever its routing, and of a prefill
    batch, divided by sequence if it can be, `--ascend-moe-window-factor` times what each rank receives if all receive
    alike; more goes in rounds, whose results have the same bits. device_bytes: memory of the device; None: prefill is
    bounded by nothing else.

    Raises `WindowTooSmall` as `check_window`.
    """
    p = parameters

    def bytes_for(tokens: int) -> int:
        return plan_window(msgspec.structs.replace(p, max_tokens=tokens)).total_bytes

    if options.window_bytes is not None:
        check_window(options, limits, bytes_for)
        return msgspec.structs.replace(p, window_bytes=options.window_bytes)
    if options.schedule == "decode" or limits.role == "decode":
        return p
    # Whatever the routing: all rows of as many tokens of every rank.
    per_token = p.ranks * p.rows_per_token
    everything = per_token * p.max_tokens
    decode = per_token * max(1, limits.decode_tokens_per_rank)
    usual = p.max_tokens if limits.context.strategy is None else min(p.max_tokens, limits.usual_tokens_per_rank)
    alike = math.ceil((options.window_factor or WINDOW_FACTOR) * usual * p.topk)
    rows = min(everything, max(decode, alike))
    if device_bytes is not None and bytes_for_capacity(p, rows) > device_bytes // DEVICE_PART:
        return msgspec.structs.replace(p, window_bytes=max(bytes_for_capacity(p, decode), device_bytes // DEVICE_PART))
    return p if rows == everything else msgspec.structs.replace(p, window_bytes=bytes_for_capacity(p, rows))
