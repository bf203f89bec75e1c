"""What a running server has reserved is seen by every other process, and is gone with the process that reserved it."""

import os
import signal
import subprocess
import sys

import pytest

from sglang_ascend_moe.errors import PeerTimeout
from sglang_ascend_moe.serving.host import reservations
from sglang_ascend_moe.serving.host.reservations import Exclusive, Reservation, outstanding, touched

GROUP = f"test-{os.getpid()}"
SIZE = 2**40

RESERVES = f"""
import sys
from sglang_ascend_moe.serving.host.reservations import Reservation
held = Reservation({GROUP!r}, {SIZE})
print("reserved", flush=True)
sys.stdin.read()
"""


def of_group(group: str = GROUP) -> list[reservations.Outstanding]:
    return [item for item in outstanding() if item.group == group]


@pytest.fixture
def other_process():
    with subprocess.Popen(
        [sys.executable, "-c", RESERVES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "reserved\n"
        yield process
        process.kill()


def test_another_process_sees_what_is_reserved_less_what_is_touched(other_process):
    (found,) = of_group()
    assert found.process == other_process.pid
    assert SIZE - 2**30 < found.untouched < SIZE


@pytest.mark.usefixtures("other_process")
def test_processes_of_ones_own_server_are_left_out():
    assert [item for item in outstanding(except_group=GROUP) if item.group == GROUP] == []


def test_a_killed_process_has_nothing_reserved(other_process):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert of_group() == []


def test_a_closed_reservation_is_gone_and_can_be_closed_again():
    held = Reservation(GROUP, SIZE)
    assert len(of_group()) == 1
    held.close()
    held.close()
    assert of_group() == []


def test_a_reservation_that_is_touched_counts_no_more():
    held = Reservation(GROUP, 1)
    try:
        assert of_group() == []
    finally:
        held.close()


def test_two_reservations_of_one_process_both_count():
    first, second = Reservation(GROUP, SIZE), Reservation(GROUP, SIZE)
    assert len(of_group()) == 2
    first.close()
    assert len(of_group()) == 1
    second.close()


def test_a_forked_child_keeps_no_reservation_alive():
    held = Reservation(GROUP, SIZE)
    end_read, end_write = os.pipe()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end_write)
        os.write(ready_write, b"x")
        os.read(end_read, 1)
        os._exit(0)
    try:
        os.read(ready_read, 1)
        held.close()
        assert of_group() == []
    finally:
        for descriptor in (end_read, end_write, ready_read, ready_write):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_memory_of_descendants_counts_as_touched(other_process):
    assert touched(os.getpid()) > touched(other_process.pid) > 0


def test_a_process_that_is_gone_has_touched_nothing(other_process):
    other_process.kill()
    other_process.wait()
    assert touched(other_process.pid) == 0


def test_only_one_process_reserves_at_a_time(monkeypatch):
    # Servers of other tests reserve, too.
    monkeypatch.setattr(reservations, "_PREFIX", f"sglang-ascend-moe {GROUP}")
    monkeypatch.setattr(reservations, "_LOCK_SECONDS", 0.0)
    with Exclusive(), pytest.raises(PeerTimeout, match="reserving memory"), Exclusive():
        pass
    with Exclusive():
        pass
