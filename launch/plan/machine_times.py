"""How fast a machine multiplies, reads and exchanges: the numbers from which `plan` computes times."""

from __future__ import annotations

from math import log2
from pathlib import Path
from typing import Literal

import msgspec

from sglang_ascend_moe.errors import InvalidInput

Schedule = Literal["relay-free", "buffer-centric"]
SCHEDULES: tuple[Schedule, ...] = ("relay-free", "buffer-centric")
Phase = Literal["prefill", "decode"]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time that grows with bytes: `fixed_us` and `us_per_mb` (10^6 bytes of rows that a rank brings, times top-k)."""

    fixed_us: float
    us_per_mb: float

    def seconds(self, size: float) -> float:
        return (self.fixed_us + self.us_per_mb * size / 1e6) / 1e6


class ExchangeTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of dispatch and combine of one layer. Combined rows are 16 bits wide."""

    dispatch: Line
    combine: Line


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's part of a machine, or all of it where ranks share it (`shared`, a host).

    memory: bytes. products: multiplications and additions per second by format of weights; the parts of it, and of
    `memory_rate` (bytes/s), that products and attention reach. exchange: by schedule, phase and rows, such as
    `relay-free decode int8`, for `ranks` ranks; each doubling of them costs `doubling_us` more; with a number behind
    it, for so many ranks. link_rate, link_us: of collectives of attention. step_us, layer_us: of each step and of each
    layer in it, whatever is in it, by schedule, phase and ranks, or under `any`; token_us: of each token in it.
    imbalance: of the busiest rank's rows over the mean. transfer_rate: keys and values to a decode server, bytes/s of a
    rank; transfer_us: what handing a request over takes besides. request_us: of a server for a request that comes.
    other_bytes: that neither weights, keys and values nor windows take. relay_bytes: of relay buffers for prefill.
    """

    name: str
    shared: bool
    memory: int
    products: dict[str, float]
    product_part: float
    attention_part: float
    memory_rate: float
    memory_part: float
    exchange: dict[str, ExchangeTimes]
    ranks: int
    doubling_us: float
    link_rate: float
    link_us: float
    step_us: dict[str, float]
    layer_us: dict[str, float]
    token_us: dict[str, float]
    imbalance: float
    transfer_rate: float
    transfer_us: float
    request_us: float
    other_bytes: int
    relay_bytes: int

    def part(self, ranks: int) -> float:
        """Of the machine's rates, for one of `ranks` ranks."""
        return 1 / ranks if self.shared else 1.0

    def exchange_seconds(
        self, schedule: Schedule, phase: Phase, rows: str, ranks: int, dispatched: float, combined: float
    ) -> float:
        """Dispatch and combine of a layer whose rank brings `dispatched` and gets back `combined` bytes; 0 on one rank
        of a machine that has no times for it.

        Raises `InvalidInput` if the machine has no times for such rows.
        """
        key, more = f"{schedule} {phase} {rows}", 0.0
        times = self.exchange.get(f"{key} {ranks}")
        if times is None:
            times, more = self.exchange.get(key), 2 * self.doubling_us / 1e6 * log2(ranks / self.ranks)
        if times is None:
            raise InvalidInput(
                f"--machine: {self.name} has no times for {key} on {ranks} ranks; calibrate it with these"
            )
        return max(0.0, times.dispatch.seconds(dispatched) + times.combine.seconds(combined) + more)


def fixed_seconds(times: dict[str, float], schedule: Schedule, phase: Phase, ranks: int) -> float:
    """The time of a step like this, else of any. Raises `InvalidInput` if there is neither."""
    found = times.get(f"{schedule} {phase} {ranks}", times.get("any"))
    if found is None:
        measured = ", ".join(times)
        raise InvalidInput(f"--machine: {schedule} on {ranks} ranks was not measured, only {measured}; calibrate it")
    return found / 1e6


def read_machine(path: Path) -> Machine:
    """What `plan calibrate` wrote. Raises `InvalidInput`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Machine)
    except OSError as error:
        raise InvalidInput(f"--machine {path}: {error.strerror}; `ascend-moe plan calibrate` writes one") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"--machine {path}: {error}; `ascend-moe plan calibrate` writes one") from error
