"""Exchanges on the model's clock: what the kernels cost each core of every rank, and when each core was done.

The constants are those of kernels/ascend/host_model/time_constants.h. No NPU has confirmed any of these times.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.native.library import native_layout
from sglang_ascend_moe.windows.layout import exchange_parameters, plan_window
from tests.exchange.scenario import Scenario

from .host_model import CoreCosts, core_costs, costs_array

pointer, u32 = ctypes.c_void_p, ctypes.c_uint32


class Constant(NamedTuple):
    """A line of the table of constants."""

    index: int
    name: str
    unit: str
    source: str
    value: float
    least: float
    most: float

    @property
    def is_speed(self) -> bool:
        """Whether more of it is faster."""
        return self.unit.startswith("G")


class RankTimes(NamedTuple):
    """One launch on one rank."""

    cores: list[CoreCosts]
    sent: float
    """Bytes that left the rank over its link."""

    @property
    def us(self) -> float:
        return max(core.ended for core in self.cores) / 1000


class Times(NamedTuple):
    """By rank."""

    dispatch: list[RankTimes]
    combine: list[RankTimes]


class _Exchange(ctypes.Structure):
    _fields_ = [
        ("layout", pointer), ("ids", pointer), ("cores", u32), ("tokens", u32), ("kind", u32), ("timed", u32),
        ("dispatch", pointer), ("combine", pointer), ("sent", pointer),
    ]  # fmt: skip


class Clock:
    """The machine of modelled time in a library of the model, in this process."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.ascend_model_run_in_time.restype = ctypes.c_char_p
        self._library.ascend_model_set_constant.argtypes = [u32, ctypes.c_double]

    def run(
        self,
        scenario: Scenario,
        ranks: int,
        cores: int,
        *,
        quant: str | None = None,
        phase: str = "decode",
        counts: str = "auto",
        timed: bool = False,
    ) -> Times:
        """One exchange; every rank brings the first number of tokens of the scenario.

        timed: launches leave the times of their steps.
        """
        parameters = exchange_parameters(ranks=ranks, quant=quant, counts=counts, **scenario.options(ranks))
        layout = bytes(native_layout(plan_window(parameters)))
        tokens = scenario.tokens[0]
        ids = b"".join(given.topk_ids.long().numpy().tobytes() for given in scenario.inputs(ranks))
        dispatch, combine = costs_array(ranks * cores), costs_array(ranks * cores)
        sent = (ctypes.c_double * (2 * ranks))()
        kept = ctypes.create_string_buffer(layout, len(layout)), ctypes.create_string_buffer(ids, len(ids) + 1)
        exchange = _Exchange(
            *map(ctypes.addressof, kept), cores, tokens, Kind[phase.upper()], timed,
            *map(ctypes.addressof, (dispatch, combine, sent)),
        )  # fmt: skip
        if wrong := self._library.ascend_model_run_in_time(ctypes.byref(exchange)).decode():
            raise AssertionError(wrong)

        def by_rank(costs: ctypes.Array, links: list[float]) -> list[RankTimes]:
            every = core_costs(costs)
            return [RankTimes(every[rank * cores :][:cores], links[rank]) for rank in range(ranks)]

        return Times(by_rank(dispatch, sent[:ranks]), by_rank(combine, sent[ranks:]))

    def constants(self) -> list[Constant]:
        texts, values = (ctypes.c_char_p * 3)(), (ctypes.c_double * 3)()
        number = self._library.ascend_model_constant(2**32 - 1, texts, values)
        found = []
        for index in range(number):
            self._library.ascend_model_constant(index, texts, values)
            found.append(Constant(index, *(text.decode() for text in texts), *values))
        return found

    @contextmanager
    def with_constants(self, **values: float) -> Iterator[None]:
        """Inside, these constants have other values."""
        changed = [constant for constant in self.constants() if constant.name in values]
        try:
            for constant in changed:
                self._library.ascend_model_set_constant(constant.index, values[constant.name])
            yield
        finally:
            for constant in changed:
                self._library.ascend_model_set_constant(constant.index, constant.value)
