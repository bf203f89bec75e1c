"""A server is stopped for certain, whatever its processes do meanwhile."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers import server_process
from sglang_ascend_moe.launch.servers.server_process import ServerProcess


def test_a_last_process_that_goes_by_itself_when_it_is_to_be_killed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server = ServerProcess([], tmp_path / "log", module="this")
    server.start()
    assert server.wait_until_ended(60) == 0
    # Ranks of a launcher that was killed end by themselves, and may be gone once they have been seen.
    seen = iter([[server.pid], []])
    monkeypatch.setattr(server_process, "group_members", lambda _: next(seen))
    assert not server.stop()
    assert not server.temporary.exists()


def test_what_was_killed_has_ended_before_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = ServerProcess([], tmp_path / "log", module="this")
    server.start()
    assert server.wait_until_ended(60) == 0
    there = []

    def members(_: int) -> list[int]:
        there.append(server.temporary.exists())
        return [server.pid] if len(there) < 5 else []

    monkeypatch.setattr(server_process, "group_members", members)
    server.stop()
    assert there == [True] * 5
