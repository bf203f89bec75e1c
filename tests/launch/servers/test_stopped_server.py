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
    monkeypatch.setattr(server_process, "group_members", lambda group: [group])
    assert not server.stop()
    assert not server.temporary.exists()
