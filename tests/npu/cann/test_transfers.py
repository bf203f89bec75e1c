"""Transfers between the memory of emulated NPUs, as memfabric carries them out for SGLang's disaggregation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.npu.cann.transfers import DONE, REFUSED, TransferEngine
from tests.npu.conftest import open_process

STORE = "tcp://127.0.0.1:24669"
SECONDS = 60
_kept: list[object] = []
"""What lives as long as the process: engines and their memory."""


class Registered(NamedTuple):
    """Memory of an engine that others may write to."""

    session: str
    address: int


def open_engine(store: str) -> TransferEngine:
    engine = TransferEngine()
    session = f"127.0.0.1:{engine.get_rpc_port()}"
    assert engine.initialize(store, session, "Decode", 0, TransferEngine.TransDataOpType.SDMA) == DONE
    return engine


def register(store: str) -> Registered:
    engine, memory = open_engine(store), torch.zeros(8, dtype=torch.int64, device="npu")
    torch.npu.synchronize()
    assert engine.batch_register_memory([memory.data_ptr()], [memory.nbytes]) == DONE
    _kept.extend([engine, memory])
    return Registered(f"127.0.0.1:{engine.get_rpc_port()}", memory.data_ptr())


def write(to: Registered, store: str, offset: int) -> int:
    """Three numbers from `offset` bytes on, and two behind them."""
    source = torch.arange(1, 6, device="npu")
    torch.npu.synchronize()
    place = to.address + offset
    addresses = [source.data_ptr(), source.data_ptr() + 24]
    return open_engine(store).batch_transfer_sync_write(to.session, addresses, [place, place + 24], [24, 16])


def read() -> list[int]:
    return _kept[-1].tolist()


@pytest.fixture
def processes(device_library: Path) -> Iterator[list[ProcessPoolExecutor]]:
    opened = [open_process(device_library, index) for index in range(2)]
    yield opened
    for process in opened:
        process.shutdown()


def test_what_is_registered_can_be_written_to_by_who_has_the_same_store(processes):
    writing, written = processes
    to = written.submit(register, STORE).result(SECONDS)
    results = [writing.submit(write, to, *how).result(SECONDS) for how in ((STORE, 16), (STORE, 32), (STORE + "0", 0))]
    assert results == [DONE, REFUSED, REFUSED]
    assert written.submit(read).result(SECONDS) == [0, 0, 1, 2, 3, 4, 5, 0]
    assert writing.submit(write, to._replace(session="127.0.0.1:1"), STORE, 0).result(SECONDS) == REFUSED


def test_an_engine_needs_a_store(processes):
    with pytest.raises(AssertionError):
        processes[0].submit(open_engine, "").result(SECONDS)
