"""Processes of a server, by the titles that SGLang gives them."""

from sglang_ascend_moe.launch.servers.server_process import group_members
from sglang_ascend_moe.serving.launcher.engine_processes import title_of


def titled(group: int, *parts: str) -> list[int]:
    """Pids of the process group `group` in whose title every one of `parts` stands; none that is gone."""
    titles = {pid: title_of(pid) for pid in group_members(group)}
    return [pid for pid, title in titles.items() if all(part in title for part in parts)]
