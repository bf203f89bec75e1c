"""CPU time of processes, by their titles."""

import psutil


def title(process: int) -> str:
    """The title that SGLang gives a process, or the program that it runs."""
    return next(iter(psutil.Process(process).cmdline()), "")


def cpu_seconds(process: int) -> float:
    """That all threads of a process have taken so far."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system
