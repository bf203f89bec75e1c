"""A rank of a benchmark whose exchange delivers one wrong element on rank 1; run in place of the real one."""

import sys

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.launch.bench import rank

dispatch = Exchange.dispatch


def wrong_dispatch(self, *arguments, **keywords):
    rows = dispatch(self, *arguments, **keywords)
    if self.rank == 1:
        rows.rows[0, 0] += 1
    return rows


if __name__ == "__main__":
    Exchange.dispatch = wrong_dispatch
    rank.leave(rank.main(sys.argv[1:]))
