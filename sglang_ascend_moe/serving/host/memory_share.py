"""How the memory of a host is divided among the ranks of its servers: pure arithmetic, and the words for it.

Each rank gets an equal part of what the machine or its container has left, less a reserve and less what other servers
have reserved. Of its part it first takes windows, tables and working memory; keys and values get the rest, but no more
than the scheduler can ever use.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.host.reservations import Outstanding
from sglang_ascend_moe.serving.machine_limits import MachineLimits

MIB = 2**20
GIB = 2**30

RESERVE_LEAST = 512 * MIB
RESERVE_PART = 20
"""A twentieth of what is left stays with the machine, and at least `RESERVE_LEAST`."""

RANK_PROCESS = 416 * MIB
OTHER_PROCESSES = 128 * MIB
"""What a rank that was forked from the launcher has in memory before it loads weights, and what the processes of a
server besides ranks and launcher have; measured."""

WORKING_LEAST = 256 * MIB
"""Of a rank, for the tensors of a step, logits apart."""
LOGIT_COPIES = 3
LOGIT_BYTES = 4
"""Sampling holds so many float32 copies of the logits of a decode batch at a time."""

TABLE_ENTRY = 4
"""Bytes: where a token of a request has its keys and values, an int32 of SGLang's table [requests, context]."""
HOST_RUNNING_REQUESTS = 256
"""`--max-running-requests` where the user names none: SGLang's 2,048 and more are for accelerators."""

LEAST_TOKENS = 512
"""Keys and values for so many tokens, or for the context length if that is less, have to fit."""

FLAGS = "--max-total-tokens, --max-running-requests, --context-length, --mem-fraction-static, --ascend-moe-host-memory"


class MemoryLeft(NamedTuple):
    """What is left on this machine. free: what the kernel, or the container, can still give; `place` says which.

    others: what other servers may still use of it. asked: `--ascend-moe-host-memory` less what the server has used
    already, or None.
    """

    free: int
    place: str
    others: tuple[Outstanding, ...] = ()
    asked: int | None = None

    @property
    def reserve(self) -> int:
        return max(RESERVE_LEAST, self.free // RESERVE_PART)

    @property
    def reserved_by_others(self) -> int:
        return sum(other.untouched for other in self.others)

    @property
    def usable(self) -> int:
        """Bytes for the server that asks."""
        left = max(0, self.free - self.reserve - self.reserved_by_others)
        return left if self.asked is None else max(0, min(left, self.asked))

    def in_words(self) -> str:
        words = f"{gib(self.free)} left on {self.place}, {gib(self.reserve)} of it kept in reserve"
        if self.others:
            who = ", ".join(f"{gib(other.untouched)} by process {other.process}" for other in self.others)
            words += f", reserved by other servers: {who}"
        if self.asked is not None:
            words += f", and --ascend-moe-host-memory leaves {gib(max(0, self.asked))}"
        return words


class RankNeeds(NamedTuple):
    """What a rank needs besides weights, keys and values, in bytes."""

    windows: int
    graphs: int
    tables: int
    working: int

    @property
    def total(self) -> int:
        return sum(self)

    def in_words(self) -> str:
        return ", ".join(f"{name} {gib(size)}" for name, size in self._asdict().items())


class Scheduling(NamedTuple):
    """Limits of the scheduler of one attention group, and the sizes that go with them.

    running: most requests in a batch. context: longest request, in tokens. vocabulary: columns of the logits.
    request_tokens: of each request in a decode batch, more than one where drafts are verified.
    """

    running: int
    context: int
    vocabulary: int
    request_tokens: int = 1

    @property
    def logits(self) -> int:
        """Most numbers in the logits of a decode batch."""
        return self.running * self.request_tokens * self.vocabulary

    @property
    def most_tokens(self) -> int:
        """Tokens whose keys and values the requests of a batch can use at most."""
        return self.running * self.context

    @property
    def least_tokens(self) -> int:
        return min(self.context, LEAST_TOKENS)


def memory_left(limits: MachineLimits, others: Sequence[Outstanding], asked: int | None = None) -> MemoryLeft:
    """What is left on this machine: the lesser of what the machine and what the container has."""
    free, place = limits.memory_available, "this machine"
    container = limits.container_available
    if container is not None and container < free:
        free, place = container, "the container (control group)"
    return MemoryLeft(free, place, tuple(others), asked)


def share_of_ranks(left: MemoryLeft, ranks: int, of: int) -> int:
    """The part of what is left for `ranks` of `of` ranks that one command starts: all get the same."""
    return max(1, left.usable * ranks // of)


def rank_needs(scheduling: Scheduling, windows: int, graphs: int) -> RankNeeds:
    """`windows`, `graphs`: bytes of one rank for them."""
    return RankNeeds(
        windows=windows,
        graphs=graphs,
        # One row per request, and one for padding.
        tables=(scheduling.running + 1) * scheduling.context * TABLE_ENTRY,
        working=WORKING_LEAST + scheduling.logits * LOGIT_BYTES * LOGIT_COPIES,
    )


def keys_values_bytes(left: MemoryLeft, ranks: int, needs: RankNeeds, fraction: float | None) -> int:
    """Bytes that one of `ranks` ranks, whose weights are loaded, may take for keys and values; may be negative.

    fraction: `--mem-fraction-static` if the user gave it: the part of a rank's share that it may fill at start-up.
    """
    share = left.usable // ranks
    slack = 0 if fraction is None else round(share * (1 - fraction))
    return share - slack - needs.total


class ServerEstimate(NamedTuple):
    """What a server will need on this machine, before anything of it is loaded. Bytes; `ranks` of this machine.

    weights: of all ranks together; None if unknown. processes: of all ranks and the other processes.
    token: keys and values of one token on one rank.
    """

    ranks: int
    weights: int | None
    processes: int
    needs: RankNeeds
    token: int
    scheduling: Scheduling

    @property
    def least(self) -> int:
        return self._with_tokens(self.scheduling.least_tokens)

    @property
    def most(self) -> int:
        return self._with_tokens(self.scheduling.most_tokens)

    def _with_tokens(self, tokens: int) -> int:
        each = self.needs.total + tokens * self.token
        return (self.weights or 0) + self.processes + self.ranks * each


def refuse_server_that_does_not_fit(estimate: ServerEstimate, left: MemoryLeft, model: str) -> None:
    """Raise `Unsupported`, with the numbers and the flags to change, if the server cannot fit into what is left."""
    if estimate.least <= left.usable:
        return
    weights = "unknown" if estimate.weights is None else gib(estimate.weights)
    raise Unsupported(
        f"{model} does not fit: {_counted(estimate.ranks)} at least {gib(estimate.least)} (weights {weights}, processes"
        f" {gib(estimate.processes)}, and each rank {estimate.needs.in_words()}), and {gib(left.usable)} can be used:"
        f" {left.in_words()}. {_remedy(estimate, left)}"
    )


def _counted(ranks: int) -> str:
    return "1 rank needs" if ranks == 1 else f"{ranks} ranks need"


def _remedy(estimate: ServerEstimate, left: MemoryLeft) -> str:
    if left.asked is not None and estimate.least <= left._replace(asked=None).usable:
        return f"Raise --ascend-moe-host-memory by {gib(estimate.least - left.usable)}"
    if left.others and estimate.least <= left._replace(asked=None, others=()).usable:
        return "Stop another server, or give it less with --ascend-moe-host-memory"
    return "Lower --tp-size, --max-running-requests, --context-length or --chunked-prefill-size, or use more memory"


def refuse_too_few_tokens(tokens: int, left: MemoryLeft, ranks: int, needs: RankNeeds, least: int) -> None:
    """Raise `Unsupported` if keys and values have room for fewer than `least` tokens."""
    if tokens >= least:
        return
    raise Unsupported(
        f"memory for keys and values of {max(0, tokens)} tokens is left, and at least {least} are needed:"
        f" {left.in_words()}; each rank may take {gib(left.usable // ranks)}, of which {needs.in_words()}. Lower"
        " --max-running-requests, --context-length, --chunked-prefill-size or --tp-size, raise --mem-fraction-static"
        " if it is given, or use more memory"
    )


def division_in_words(
    left: MemoryLeft, ranks: int, weights: int, needs: RankNeeds, keys_values: int, tokens: int, why: str
) -> str:
    """The one line at start-up. why: what decided the number of `tokens`."""
    return (
        f"Memory: {left.in_words()}. Each of {ranks} rank{'s' * (ranks > 1)}: weights {gib(weights)},"
        f" {needs.in_words()}, keys and values {gib(keys_values)} for {tokens:,} tokens ({why}). Flags: {FLAGS}"
    )


def gib(size: int) -> str:
    """`1.5 GiB`, or `12 MiB` below a gibibyte."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
