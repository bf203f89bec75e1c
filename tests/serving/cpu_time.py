"""CPU time of processes, by their titles."""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def title(process: int) -> str:
    """The title that SGLang gives a process, or the program that it runs."""
    return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")


def cpu_seconds(process: int) -> float:
    """That all threads of a process have taken so far."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS
