"""A rank of a benchmark that is lost in the second case; run in place of the real one."""

import os
import signal
import sys

from sglang_ascend_moe.launch.bench import rank

measure_case = rank.measure_case
LOST_TOKENS = 5
"""The case with as many tokens is the one that is lost."""
SIGNAL = "ASCEND_MOE_TEST_SIGNAL"
"""Environment variable: what rank 1 ends itself by, or rank 0 interrupts its command by."""


def lost(run, case, ranks, seconds):
    number = int(os.environ[SIGNAL])
    if case.tokens == LOST_TOKENS and ranks.rank == 1:
        os.kill(os.getpid() if number == signal.SIGKILL else os.getppid(), number)
    return measure_case(run, case, ranks, seconds)


if __name__ == "__main__":
    rank.measure_case = lost
    rank.leave(rank.main(sys.argv[1:]))
