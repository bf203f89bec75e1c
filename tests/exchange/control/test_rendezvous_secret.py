"""Ranks with a secret open an exchange with each other only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from sglang_ascend_moe.errors import AscendMoeError, ProtocolMismatch
from sglang_ascend_moe.exchange.control import rendezvous
from tests.exchange.harmed_ranks import SCENARIO, call
from tests.exchange.pool import Rank
from tests.exchange.process_state import descriptors, mappings
from tests.exchange.surface import open_exchange


class Refused(NamedTuple):
    """What `create` raised: its code, and the rank that it names."""

    code: str
    named: str


SECRETS = {"one": b"1" * 32, "another": b"2" * 32}


def open_with(rank: Rank, folder: Path, names: list[str | None]) -> Refused | None:
    """Opens and uses an exchange with the secret that this rank is given; None if that went well."""
    name = names[rank.rank]
    file = None if name is None else folder / f"{name}-{rank.rank}"
    if file is not None:
        file.write_bytes(SECRETS[name])
        file.chmod(0o600)
    before = descriptors(), mappings()
    try:
        with open_exchange("windows", rank, SCENARIO, secret_file=file) as exchange:
            call(exchange, "decode", rank)
    except AscendMoeError as error:
        assert (descriptors(), mappings()) == before
        [named] = set(re.findall(r"rank \d", str(error)))
        return Refused(error.code, named)
    return None


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_with_one_secret_work_together(pools, tmp_path, ranks):
    assert pools.run(ranks, open_with, tmp_path, ["one"] * ranks) == [None] * ranks


@pytest.mark.parametrize("names", [["one", "another", "one"], ["one", None, "one"]], ids=["wrong", "none"])
def test_a_rank_without_the_secret_is_refused_on_every_rank(pools, tmp_path, names):
    said = pools.run(3, open_with, tmp_path, names)
    assert said == [Refused(ProtocolMismatch.code, named) for named in ("rank 1", "rank 0", "rank 1")]
    assert pools.run(3, open_with, tmp_path, ["one"] * 3) == [None] * 3


class Replaying:
    """`_gather` of rank 1 with an attacker on its way: its sealed frame of the first time is sent again the second."""

    def __init__(self) -> None:
        self._gather = rendezvous._gather
        self._recorded: bytes | None = None

    def __call__(self, group, data: bytes, timeout_s: float, call: str) -> list[bytes]:
        if len(data) > 1000:
            self._recorded = self._recorded or data
            data = self._recorded
        return self._gather(group, data, timeout_s, call)


def replay(rank: Rank, folder: Path) -> list[Refused | None]:
    if rank.rank != 1:
        return [open_with(rank, folder, ["one"] * 2) for _ in range(2)]
    with patch.object(rendezvous, "_gather", Replaying()):
        return [open_with(rank, folder, ["one"] * 2) for _ in range(2)]


def test_a_replayed_block_is_refused(fresh_pool, tmp_path):
    assert fresh_pool(2).run(replay, tmp_path)[0] == [None, Refused(ProtocolMismatch.code, "rank 1")]


def forge(rank: Rank, folder: Path) -> Refused | None:
    """Rank 1's block says on its way that it is rank 0's, with a seal that cannot be right."""
    gather = rendezvous._gather

    def changed(group, data: bytes, timeout_s: float, call: str) -> list[bytes]:
        return gather(group, data.replace(b"\xa4rank\x01", b"\xa4rank\x00"), timeout_s, call)

    with patch.object(rendezvous, "_gather", changed):
        return open_with(rank, folder, ["one"] * 2)


def test_a_changed_block_is_refused(pools, tmp_path):
    assert pools.run(2, forge, tmp_path)[0] == Refused(ProtocolMismatch.code, "rank 1")
