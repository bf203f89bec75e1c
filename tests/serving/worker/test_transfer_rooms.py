"""No state of a transfer is lost between two threads that change it."""

import threading

import pytest

from sglang_ascend_moe.serving.worker import transfer_rooms

BOOTSTRAPPING, WAITING = 1, 2


class Watched:
    """A lock that tells when somebody has asked for it."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self.asked.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize(("first", "second"), [(BOOTSTRAPPING, WAITING), (WAITING, BOOTSTRAPPING)], ids=str)
def test_a_room_that_two_threads_open_at_once_keeps_the_later_state(monkeypatch, first, second):
    lock = Watched()
    monkeypatch.setattr(transfer_rooms, "_one_at_a_time", lock)
    rooms: dict[int, int] = {}
    both_are_there = threading.Event()

    def original(_manager: object, room: int, status: int) -> None:
        # As SGLang's: what was read decides, whatever has happened meanwhile.
        read = rooms.get(room)
        assert both_are_there.wait(60)
        rooms[room] = status if read is None else max(read, status)

    threads = [
        threading.Thread(target=transfer_rooms.update_status, args=(original, "manager", 7, status))
        for status in (first, second)
    ]
    for thread in threads:
        thread.start()
        assert lock.asked.acquire(timeout=60)
    both_are_there.set()
    for thread in threads:
        thread.join()
    assert rooms == {7: WAITING}


def test_a_change_may_report_another_one():
    seen = []

    def original(_manager: object, room: int, status: int) -> None:
        seen.append((room, status))
        if status:
            transfer_rooms.update_status(original, "manager", room, status - 1)

    transfer_rooms.update_status(original, "manager", 7, 1)
    assert seen == [(7, 1), (7, 0)]
