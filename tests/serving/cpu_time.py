"""CPU time of processes."""

import psutil


def cpu_seconds(process: int) -> float:
    """That all threads of a process have taken so far."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system
