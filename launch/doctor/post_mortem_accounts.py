"""`ascend-moe doctor --post-mortem DIR`: the accounts that ranks wrote when an exchange failed, read together."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from sglang_ascend_moe.errors import rank_in_words
from sglang_ascend_moe.exchange.control.post_mortem import PostMortem, read_accounts


def account_of(folder: Path) -> str:
    """Who waited for whom and whom everyone blames, for every session in the folder; empty if there is none.

    Raises `ProtocolMismatch` for a file that is not an account.
    """
    return "\n\n".join("\n".join(_session_lines(accounts)) for accounts in read_accounts(folder).values())


def _session_lines(accounts: list[PostMortem]) -> list[str]:
    first = min(accounts, key=lambda account: account.time)
    silent = sorted(set(range(first.ranks)) - {account.rank for account in accounts})
    of_stage = "" if first.stage is None else f" of pipeline stage {first.stage}"
    session = f"session {first.session.hex()[:12]}: {first.ranks} ranks{of_stage}"
    lines = [f"{session}, {len(accounts)} of them left an account"]
    lines += [
        f"  {_blame(accounts)}",
        f"  first to notice: {rank_in_words(first.rank, first.nodes)}, {_clock(first.time)}",
        "",
    ]
    for account in accounts:
        who = rank_in_words(account.rank, account.nodes)
        lines.append(f"  {who} (process {account.process}, +{account.time - first.time:.3f} s)")
        lines.append(f"      {account.message}")
        if account.missing:
            lines.append(
                f"      was waiting for {_ranks(account.missing)} at step {account.step}, epoch {account.epoch}"
            )
        lines.append(f"      {_slowest(account)}")
    lines += [f"  {rank_in_words(rank, first.nodes)} left none: it was killed, or is still stopped" for rank in silent]
    lines += ["", "  rows from each rank to the first to notice in the last dispatch:"]
    lines += [f"      rank {rank}: {sum(counts)}" for rank, counts in enumerate(first.received)]
    return lines


def _blame(accounts: list[PostMortem]) -> str:
    blamed = Counter(account.culprit for account in accounts)
    nodes = accounts[0].nodes
    return "blamed: " + ", ".join(f"{rank_in_words(rank, nodes)} (by {count})" for rank, count in blamed.most_common())


def _slowest(account: PostMortem) -> str:
    peers = {rank: seconds for rank, seconds in enumerate(account.waited_s) if rank != account.rank}
    if not any(peers.values()):
        return "was never held up"
    slowest = max(peers, key=lambda rank: peers[rank])
    return f"was held up by others for {sum(peers.values()):.3f} s, most by rank {slowest} ({peers[slowest]:.3f} s)"


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
